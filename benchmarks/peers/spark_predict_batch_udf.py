"""Spark's own `predict_batch_udf`, which loads the model and cuts the batches itself.

Its result is an array, so the vector of a broken image is NaN, not null.
"""

from collections.abc import Callable

import numpy as np
from contender import PillowModel, Work, measure
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql.types import ArrayType, FloatType
from spark_job import write_column


def prepare(work: Work) -> Callable[[], None]:
    def load() -> Callable[[np.ndarray], np.ndarray]:
        return PillowModel(work).embed

    embed = predict_batch_udf(load, return_type=ArrayType(FloatType()), batch_size=work.batch_size)
    return write_column(work, embed)


if __name__ == "__main__":
    measure(prepare)
