"""Statements end at semicolons, and only there."""

import random
import re
import time

import pytest

from spark_vision.cli.statements import split_statements


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1; SELECT 2;\n", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';', \";\", `;` FROM t", ["SELECT ';', \";\", `;` FROM t"]),
        (r"SELECT 'it\'s; here'; SELECT 2", [r"SELECT 'it\'s; here'", "SELECT 2"]),
        ("SELECT 'it''s; here'; SELECT 2", ["SELECT 'it''s; here'", "SELECT 2"]),
        ("SELECT 1 -- not; here\n; SELECT 2", ["SELECT 1 -- not; here", "SELECT 2"]),
        ("SELECT /*+ BROADCAST(t); */ 1", ["SELECT /*+ BROADCAST(t); */ 1"]),
        ("-- only; words\n;; /* ; */", []),
        ("SELECT /* a /* b; */ c; */ 1; SELECT 2", ["SELECT /* a /* b; */ c; */ 1", "SELECT 2"]),
        ("SELECT /*/ ; */ 1; SELECT 2", ["SELECT /*/ ; */ 1", "SELECT 2"]),
        ("/*+ a /* ; */ ; */ SELECT 1", ["/*+ a /* ; */ ; */ SELECT 1"]),
        (
            "SELECT 1 -- goes on \\\n; here\n; SELECT 2",
            ["SELECT 1 -- goes on \\\n; here", "SELECT 2"],
        ),
        ("SELECT 1 -- ends\r; SELECT 2", ["SELECT 1 -- ends", "SELECT 2"]),
        ("SELECT r'a\\', R\"b;\\\"; SELECT 2", ["SELECT r'a\\', R\"b;\\\"", "SELECT 2"]),
        ("SELECT bar'a\\';'; SELECT 2", ["SELECT bar'a\\';'", "SELECT 2"]),
        ("SELECT `a``;b`; SELECT 2", ["SELECT `a``;b`", "SELECT 2"]),
        ("SELECT $$a;'b$$; SELECT 2", ["SELECT $$a;'b$$", "SELECT 2"]),
        ("SELECT $tag$;$$;$tag$; SELECT 2", ["SELECT $tag$;$$;$tag$", "SELECT 2"]),
        ("SELECT $1; SELECT ${x}", ["SELECT $1", "SELECT ${x}"]),
        ("SELECT 'never; closed", ["SELECT 'never; closed"]),
        ("SELECT 'never; closed\\", ["SELECT 'never; closed\\"]),
        ('SELECT "never; closed', ['SELECT "never; closed']),
        ("SELECT r'never; closed", ["SELECT r'never; closed"]),
        ("SELECT `never; closed", ["SELECT `never; closed"]),
        ("SELECT $$never; closed", ["SELECT $$never; closed"]),
        ("SELECT /* /* */ never; closed", ["SELECT /* /* */ never; closed"]),
    ],
)
def test_statements_are_split(text, statements):
    assert split_statements(text) == statements


OLD_TOKEN = re.compile(
    r"""'(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | `[^`]*` | --[^\n]* | /\*.*?\*/ | ; | .""",
    re.DOTALL | re.VERBOSE,
)


def split_slowly(text):
    """Split as by a pattern for a token at a time: what ordinary SQL must still give."""
    statements, statement, code = [], "", ""
    for token in [*OLD_TOKEN.findall(text), ";"]:
        if token == ";":
            if code.strip():
                statements.append(statement.strip())
            statement = code = ""
        else:
            statement += token
            code += "" if token.startswith(("--", "/*")) else token
    return statements


def test_ordinary_sql_is_split_as_by_a_token_at_a_time():
    words = ["SELECT 1", "a.b", "';'", '"; x"', "`;`", r"'it\'s;'", "''", "--;\n", "/* ; */", ";"]
    words += [" ", "\n", "(", "a-b", "a/b", "-- '\n", "/* ' -- */", "'--'", "'/*'", "图;"]
    chosen = random.Random(0)
    for _ in range(2000):
        text = "".join(chosen.choices(words, k=chosen.randrange(30)))
        assert split_statements(text) == split_slowly(text), text


@pytest.mark.parametrize(
    "piece",
    [
        *"x ;'`-$\\",
        *("\"'", "'\\", "--", "--\\\n", "/*", "/*+", "*/", "/**/", "$$", "$a$", "$a"),
        *("r'", "r\"'", "x;", "'';", "/*;", "--x\n"),
    ],
)
def test_the_time_of_a_megabyte_is_that_of_its_length(piece):
    # A token at a time took minutes for most of these; this takes a fraction of a second.
    text = piece * (1_000_000 // len(piece))
    begun = time.process_time()
    split_statements(text)
    assert time.process_time() - begun < 20
