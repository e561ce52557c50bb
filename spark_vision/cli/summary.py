"""Formats the result of a write as the last lines of a job."""

from spark_vision.tables.write import WriteResult


def describe_result(result: WriteResult) -> str:
    """Format the table, the rows, the statuses of each column, and the rate."""
    lines = [
        f"table: {result.table}",
        f"rows: {result.source_rows:,} in the input, {result.there:,} in the table before, "
        f"{result.computed:,} computed",
    ]
    if result.refreshed:
        lines.append(f"kept columns copied again: {result.refreshed:,} rows")
    if result.deleted:
        lines.append(f"deleted: {result.deleted:,} rows that the input no longer has")
    if result.left:
        lines.append(f"left for another run: {result.left:,} rows")
    for column, counts in result.statuses.items():
        if counts:
            shown = ", ".join(f"{status} {count:,}" for status, count in counts.items())
            lines.append(f"{column}: {shown}")
    rate = f", {result.computed / result.seconds:,.1f} rows/s" if result.computed else ""
    lines.append(f"time: {result.seconds:,.1f} s{rate}")
    return "\n".join(lines)
