"""Random hyperplanes separate vectors as often as the formula says."""

import numpy as np
import pytest

from spark_vision.search.hyperplanes import (
    MAX_BITS,
    NO_SAMPLE,
    Hyperplanes,
    choose_hyperplanes,
    measure_collisions,
)

EVENLY = [2.0**-bits for bits in range(MAX_BITS + 1)]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def pairs_at(cosine, count=4000, dimension=64):
    random = np.random.default_rng(3)
    one = unit(random.standard_normal((count, dimension)))
    away = random.standard_normal((count, dimension))
    away = unit(away - (away * one).sum(axis=1, keepdims=True) * one)
    other = cosine * one + np.sqrt(1 - cosine**2) * away
    return one.astype(np.float32), other.astype(np.float32)


@pytest.mark.parametrize("threshold", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("row_count", [20_000, 10**9])
def test_pairs_at_the_threshold_share_a_block_as_often_as_asked(threshold, row_count):
    planes = choose_hyperplanes(64, row_count, EVENLY, threshold, recall=0.9)
    assert planes.tables > 1
    one, other = (planes.encode(vectors) for vectors in pairs_at(threshold))
    assert one.shape == (4000, planes.tables)
    same = one == other
    expected = (1 - np.arccos(threshold) / np.pi) ** planes.bits
    assert same.mean() == pytest.approx(expected, abs=0.02)
    assert same.any(axis=1).mean() == pytest.approx(0.9, abs=0.04)


def test_codes_use_all_bits():
    vectors = pairs_at(0.9)[0]
    assert Hyperplanes(64, MAX_BITS, 1).encode(vectors).max() > 2**31
    assert (Hyperplanes(64, 0, 1).encode(vectors) == 0).all()


def test_few_vectors_are_all_compared():
    assert choose_hyperplanes(8, 300, EVENLY, 0.95, 0.99) == Hyperplanes(8, 0, 1)
    assert choose_hyperplanes(8, 10**6, NO_SAMPLE, 0.95, 0.99) == Hyperplanes(8, 0, 1)


def test_more_vectors_and_vectors_close_together_have_more_bits():
    def bits(row_count, collisions):
        return choose_hyperplanes(8, row_count, collisions, 0.95, 0.99).bits

    close = [1.6**-bits for bits in range(MAX_BITS + 1)]
    assert bits(10_000, EVENLY) < bits(10**6, EVENLY) < bits(10**6, close)


def test_equal_vectors_need_one_table():
    assert choose_hyperplanes(8, 10**6, EVENLY, 1.0, 0.99).tables == 1


def test_the_share_of_pairs_in_one_block_is_measured():
    random = np.random.default_rng(5)
    # A common direction, as vectors of a model have.
    vectors = (random.standard_normal((500, 64)) + 1).astype(np.float32)
    measured = measure_collisions(vectors)
    codes = Hyperplanes(64, 6, 40).encode(vectors)
    pairs = len(vectors) * (len(vectors) - 1) / 2
    counted = [
        (size * (size - 1) / 2).sum() / pairs
        for size in (np.unique(table, return_counts=True)[1] for table in codes.T)
    ]
    assert measured[0] == 1
    assert measured[6] > 4 * 2**-6
    assert measured[6] == pytest.approx(np.mean(counted), rel=0.2)
    assert measure_collisions(vectors[:1]) == NO_SAMPLE
