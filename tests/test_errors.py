"""The text of a row's `error`, whatever untrusted text is in the row."""

import pickle

import pytest

from spark_vision.errors import RowFailure, Status


def reason(text):
    return RowFailure(Status.READ_ERROR, text).reason


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("图里有几个人? é 🎈 cafe\u0301", "图里有几个人? é 🎈 cafe\u0301"),
        ("two\nlines\r\n\tand\u2028more", "two lines and more"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("nul\x00 del\x7f c1\x9b", "nul\\x00 del\\x7f c1\\x9b"),
        ("gpj.\u202eexe \u2066x\u2069", "gpj.\\u202eexe \\u2066x\\u2069"),
        ("half \ud83c of a pair", "half \\ud83c of a pair"),
        (
            "\ufeffmark \u200b space \ue000 \U000e0041",
            "\\ufeffmark \\u200b space \\ue000 \\U000e0041",
        ),
    ],
)
def test_an_error_is_one_printable_line(given, expected):
    assert reason(given) == expected
    assert expected.isprintable()
    assert expected.encode("utf-8")


@pytest.mark.parametrize("text", ["x" * 10_000_000, "\x00" * 500, " " * 5000 + "x", "图" * 201])
def test_an_error_has_at_most_200_characters(text):
    assert len(reason(text)) <= 200
    assert reason(text).endswith("…")


def test_an_error_stays_as_it_is_on_its_way_to_the_driver():
    failure = RowFailure(Status.TIMEOUT, "\u202e" * 100)
    again = pickle.loads(pickle.dumps(failure))
    assert (again.status, again.reason, str(again)) == (
        failure.status,
        failure.reason,
        str(failure),
    )
