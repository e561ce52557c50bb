"""Statements end at semicolons, and only there."""

import pytest

from spark_vision.statements import split_statements


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
    ],
)
def test_statements_are_split(text, statements):
    assert split_statements(text) == statements
