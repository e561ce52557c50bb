"""A few hundred mutated inputs per target; `tests/support/fuzz.py` runs more."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import fuzz
from spark_vision.errors import RowFailure
from spark_vision.images.cost import Format
from spark_vision.images.headers import read_header

TESTS = Path(fuzz.__file__).parent


def test_corpus_is_small_and_whole():
    corpus = fuzz.make_images()
    assert sum(map(len, corpus)) < 64 * 2**10
    formats = set()
    for data in corpus:
        with suppress(RowFailure):
            formats.add(read_header(memoryview(data)).format)
    assert formats == set(Format)


def test_case_depends_only_on_seed_and_number():
    corpus = fuzz.make_images()
    cases = [fuzz.mutated(corpus, 1, number) for number in range(50)]
    assert cases == [fuzz.mutated(corpus, 1, number) for number in range(50)]
    assert cases != [fuzz.mutated(corpus, 2, number) for number in range(50)]
    assert len(set(cases)) > 45


def test_violation_is_reported_with_its_case():
    def check(data):
        assert len(data) < 5, "too long"

    target = fuzz.Target(lambda: [b"abcdef"], check)
    with pytest.raises(AssertionError, match="too long") as caught:
        fuzz.fuzz(target, 7, range(100))
    assert "--seed 7 --first" in caught.value.__notes__[0]


@pytest.mark.parametrize("target", ["headers", "addresses", "messages"])
def test_any_bytes_are_read_or_refused(target):
    assert fuzz.fuzz(fuzz.TARGETS[target], 0, range(600)) == 600


def test_image_of_any_bytes_is_decoded_or_fails():
    """In a child process, because a decoder in C could crash this one."""
    run = subprocess.run(
        [sys.executable, str(TESTS / "fuzz.py"), "decoding", "--cases", "300"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stdout[-200:] + run.stderr[-2000:]
    assert "300 cases" in run.stdout
