"""The memory of one image while it is fetched."""

import tracemalloc

from spark_vision.images.transfer import Transfer
from spark_vision.operators import ImageLimits


def test_many_small_pieces_take_no_more_memory_than_their_bytes():
    transfer = Transfer(ImageLimits())
    tracemalloc.start()
    for number in range(100_000):
        transfer.append(b"%02d" % (number % 100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(transfer.data()) == 200_000
    assert peak < 1_000_000
