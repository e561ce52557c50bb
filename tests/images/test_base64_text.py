"""Base64 in its common spellings, and text that is not base64."""

import base64

import numpy as np
import pytest

from spark_vision.errors import RowFailure, Status
from spark_vision.images.sources import decode_base64

DATA = np.random.default_rng(1).bytes(1000)
PLAIN = base64.b64encode(DATA).decode()
PREFIXES = [
    "data:image/jpeg;base64,",
    "data:image/svg+xml;base64,",
    "data:;base64,",
    "DATA:Image/PNG;BASE64,",
    "data:image/png;charset=utf-8;base64,",
    "  data:image/png;base64,\n",
]


def decode(text, max_bytes=10_000):
    return decode_base64(memoryview(text.encode()), max_bytes)


def test_plain_text():
    assert decode(PLAIN) == DATA


@pytest.mark.parametrize("prefix", PREFIXES)
def test_data_prefix_is_cut(prefix):
    assert decode(prefix + PLAIN) == DATA


def test_url_safe_alphabet():
    text = base64.urlsafe_b64encode(DATA).decode()
    assert "-" in text
    assert "_" in text
    assert decode(text) == DATA


@pytest.mark.parametrize("size", range(8))
def test_missing_padding(size):
    text = base64.b64encode(DATA[:size]).decode().rstrip("=")
    assert decode(text) == DATA[:size]


def test_lines_and_blanks():
    assert decode(base64.encodebytes(DATA).decode()) == DATA
    assert decode("\r\n".join([" " + PLAIN[:76], PLAIN[76:], "\t"])) == DATA


@pytest.mark.parametrize(
    "text",
    [
        "not base64!",
        PLAIN[:100] + "\0" + PLAIN[100:],
        PLAIN[:100] + "=" + PLAIN[100:],
        "A",
        "é" * 8,
        "https://example.com/cat.png?size=1",
        "data:image/png," + PLAIN,
        "data:image/svg+xml,%3Csvg%3E",
        "data:image/png;base64;" + PLAIN,
    ],
)
def test_anything_else_is_bad(text):
    with pytest.raises(RowFailure) as caught:
        decode(text)
    assert caught.value.status == Status.BAD_BASE64


@pytest.mark.parametrize(
    "spell", [lambda text: text, lambda text: text.rstrip("="), lambda text: "\n" + text]
)
@pytest.mark.parametrize("size", [998, 999, 1000])
def test_size_is_capped_exactly(spell, size):
    text = spell(base64.b64encode(DATA[:size]).decode())
    assert decode(text, max_bytes=size) == DATA[:size]
    with pytest.raises(RowFailure) as caught:
        decode(text, max_bytes=size - 1)
    assert caught.value.status == Status.TOO_LARGE


def test_text_too_long_is_refused_before_it_is_decoded():
    with pytest.raises(RowFailure) as caught:
        decode("!" * 5000, max_bytes=1000)
    assert caught.value.status == Status.TOO_LARGE
