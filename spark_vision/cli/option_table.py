"""Option tables of the documentation, printed by `python -m spark_vision.cli.option_table`."""

from spark_vision.cli.command_line import describe_default
from spark_vision.operators import OPERATORS
from spark_vision.operators.options import Option, options_of
from spark_vision.tables.write_options import WriteOptions


def option_table() -> str:
    """Return a Markdown table of the options of all operators.

    An option that is the same in several operators has one row, which lists them.
    """
    owners: dict[Option, list[str]] = {}
    for name, operator in OPERATORS.items():
        for each in options_of(operator):
            owners.setdefault(each, []).append(name)
    rows = ["| option | default | allowed | meaning | operators |", "|---|---|---|---|---|"]
    for each, names in owners.items():
        whose = "all" if len(names) == len(OPERATORS) else ", ".join(f"`{name}`" for name in names)
        cells = (
            f"`{each.name}`",
            f"`{describe_default(each)}`",
            each.describe_allowed(),
            each.help,
            whose,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def write_option_table() -> str:
    """Return a Markdown table of the options of a table write."""
    rows = ["| option | default | allowed | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{each.name}` | `{describe_default(each)}` | {each.describe_allowed()} | {each.help} |"
        for each in options_of(WriteOptions)
    ]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(option_table())
    print(write_option_table(), end="")
