"""This package with `fast_decode`, which matters for large photographs."""

from functools import partial

from contender import answer_rounds
from spark_vision_column import prepare

if __name__ == "__main__":
    answer_rounds(partial(prepare, fast_decode=True))
