"""Formats the result of a write as the last lines of a job."""

from spark_vision.tables.write_result import WriteResult


def describe_result(result: WriteResult) -> str:
    """Format the table, the rows, the statuses of each column, and the rate."""
    lines = [
        f"table: {result.table}",
        f"rows: {result.source_rows:,} in the input, {result.existing_rows:,} in the table before, "
        f"{result.computed_rows:,} computed",
    ]
    if result.refreshed_rows:
        lines.append(f"kept columns copied again: {result.refreshed_rows:,} rows")
    if result.deleted_rows:
        lines.append(f"deleted: {result.deleted_rows:,} rows that the input no longer has")
    if result.remaining_rows:
        lines.append(f"remaining for the next run: {result.remaining_rows:,} rows")
    for column, counts in result.statuses.items():
        if counts:
            shown = ", ".join(f"{status} {count:,}" for status, count in counts.items())
            lines.append(f"{column}: {shown}")
    rate = f", {result.rows_per_second:,.1f} rows/s" if result.computed_rows else ""
    lines.append(f"time: {result.elapsed_seconds:,.1f} s{rate}")
    return "\n".join(lines)
