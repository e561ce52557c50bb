"""This package with `fast_decode`, which matters for large photographs."""

from functools import partial

from contender import measure
from spark_vision_column import prepare

if __name__ == "__main__":
    measure(partial(prepare, fast_decode=True))
