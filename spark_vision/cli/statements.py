"""Splits SQL text into statements at semicolons, with the rules of Spark's lexer.

The time is linear in the length of any text: each part is scanned once.
"""

import re

# Semicolons within quotes, quoted names and comments do not count. An unclosed one extends to the
# end of the text, and Spark reports the error.
_TOKEN = re.compile(
    r"""
    ;
    | --(?:\\\n|[^\r\n])*+
    | /\*
    | (?<!\w)[rR](?:'[^']*+'?|"[^"]*+"?)
    | '(?:\\.|[^'\\])*+(?:'|\\?\Z)
    | "(?:\\.|[^"\\])*+(?:"|\\?\Z)
    | `[^`]*+`?
    | \$(?P<tag>[A-Za-z]*+)\$
    """,
    re.DOTALL | re.VERBOSE,
)
_COMMENT_BORDER = re.compile(r"/\*|\*/")


def split_statements(text: str) -> list[str]:
    """Split SQL at semicolons, except those in quotes and comments.

    Args:
        text: One or more statements of Spark SQL. Bracketed comments may be nested. Strings may be
            in single, double or dollar quotes, or raw (`r'…'`).

    Returns:
        The statements without semicolons, leaving out empty ones and those with only a comment.
    """
    statements = []
    start = position = 0
    has_code = False
    while found := _TOKEN.search(text, position):
        token, end = found[0], found.end()
        has_code = has_code or not _is_blank(text, position, found.start())
        if token == ";":
            if has_code:
                statements.append(text[start : found.start()].strip())
            start, has_code = end, False
        elif token == "/*":
            end = _end_of_comment(text, end)
        elif not token.startswith("--"):
            has_code = True
            if found["tag"] is not None:
                close = text.find(token, end)
                end = len(text) if close < 0 else close + len(token)
        position = end
    if has_code or not _is_blank(text, position, len(text)):
        # Keep comments: a hint is a comment.
        statements.append(text[start:].strip())
    return statements


def _is_blank(text: str, start: int, end: int) -> bool:
    return not text[start:end].strip()


def _end_of_comment(text: str, position: int) -> int:
    depth = 1
    for border in _COMMENT_BORDER.finditer(text, position):
        depth += 1 if border[0] == "/*" else -1
        if not depth:
            return border.end()
    return len(text)
