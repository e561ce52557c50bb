"""Cuts a SQL text into statements at the semicolons that end them."""

import re

# What a semicolon does not end: quoted text and names, and comments.
_TOKEN = re.compile(
    r"""'(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | `[^`]*` | --[^\n]* | /\*.*?\*/ | ; | .""",
    re.DOTALL | re.VERBOSE,
)


def split_statements(text: str) -> list[str]:
    """Split SQL at semicolons; those in quotes and comments do not count.

    Args:
        text: One or more statements of Spark SQL.

    Returns:
        The statements without their semicolons; none that is empty or only a comment.
    """
    statements: list[str] = []
    statement = code = ""
    for token in [*_TOKEN.findall(text), ";"]:
        if token == ";":
            if code.strip():
                statements.append(statement.strip())
            statement = code = ""
        else:
            # Comments stay: a hint is one.
            statement += token
            code += "" if token.startswith(("--", "/*")) else token
    return statements
