"""Random hyperplanes: vectors on the same side of all of them are in one block, and are compared.

The probability that a random hyperplane through the origin separates two vectors is their angle
divided by pi (Charikar, Similarity estimation techniques from rounding algorithms, STOC 2002). A
table of `bits` hyperplanes has two vectors of angle θ in one block with the probability

    (1 - θ/π) ** bits

and at least one of several tables with

    1 - (1 - (1 - θ/π) ** bits) ** tables.

More bits make smaller blocks, but need more tables for the same recall.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from spark_vision.search.batches import Floats

MAX_BITS = 32
_SEED = 0
# To copy a row into one more table costs as much as to compare it with so many vectors.
_COPY_COST = 512
# Each copy of a row carries its codes in all tables.
_MAX_TABLES = 256
_ENCODED_NUMBERS = 1 << 24

# Without a sample of two vectors, none are known to be in different blocks.
NO_SAMPLE = [1.0] * (MAX_BITS + 1)

Codes = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Hyperplanes:
    """Tables of random hyperplanes; the same for the same numbers.

    Attributes:
        dimension: The length of a vector.
        bits: The hyperplanes of a table.
        tables: The number of tables.
    """

    dimension: int
    bits: int
    tables: int

    def encode(self, vectors: Floats) -> Codes:
        """Return each vector's code in each table, (rows, tables): a bit for each hyperplane."""
        codes = np.zeros((len(vectors), self.tables), np.uint32)
        values = 1 << np.arange(self.bits, dtype=np.uint32)
        row_count = max(1, _ENCODED_NUMBERS // max(1, self.tables * self.bits))
        for start in range(0, len(vectors), row_count):
            sides = vectors[start : start + row_count] @ self._normals >= 0
            codes[start : start + row_count] = (
                sides.reshape(len(sides), self.tables, self.bits) @ values
            )
        return codes

    @cached_property
    def _normals(self) -> Floats:
        random = np.random.default_rng(_SEED)
        return random.standard_normal((self.dimension, self.tables * self.bits), np.float32)


def choose_hyperplanes(
    dimension: int,
    row_count: float,
    collisions: Sequence[float],
    threshold: float,
    recall: float,
) -> Hyperplanes:
    """Choose the bits that cost least, with as many tables as the recall needs, 256 at most.

    Args:
        dimension: The length of a vector.
        row_count: The number of vectors.
        collisions: For 0 to `MAX_BITS` bits, the share of pairs of vectors in one block.
        threshold: The cosine similarity of a pair that is to be found.
        recall: The least probability to find it.

    Returns:
        The hyperplanes; no bits and one table, so that all are compared, where that costs least.
    """
    same_side = 1 - math.acos(threshold) / math.pi

    def count_tables(bits: int) -> int:
        together = same_side**bits
        return 1 if together >= recall else math.ceil(math.log(1 - recall) / math.log1p(-together))

    def cost(bits: int) -> float:
        return count_tables(bits) * (_COPY_COST + row_count * collisions[bits])

    possible = [bits for bits in range(MAX_BITS + 1) if count_tables(bits) <= _MAX_TABLES]
    bits = min(possible, key=cost)
    return Hyperplanes(dimension, bits, count_tables(bits))


def measure_collisions(vectors: Floats) -> list[float]:
    """Return the share of pairs of a sample that are in one block, for 0 to `MAX_BITS` bits.

    It is 1 / 2 ** bits only where vectors point everywhere. Those of a model have a common
    direction, and more of them share a block.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    if not len(cosines):
        return NO_SAMPLE
    same_side = 1 - np.arccos(np.clip(cosines, -1, 1)) / np.pi
    return [float(np.mean(same_side**bits)) for bits in range(MAX_BITS + 1)]
