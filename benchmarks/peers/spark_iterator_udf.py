"""A pandas UDF over an iterator of batches, as users write it; a worker keeps its model."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from contender import Work, load_model, measure
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, FloatType
from spark_job import write_column


def prepare(work: Work) -> Callable[[], None]:
    def embed(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        model = load_model(work)
        for batch in batches:
            for start in range(0, len(batch), work.batch_size):
                vectors = model.embed(batch.iloc[start : start + work.batch_size].to_list())
                yield pd.Series([None if np.isnan(row[0]) else row for row in vectors])

    return write_column(work, F.pandas_udf(embed, ArrayType(FloatType())))


if __name__ == "__main__":
    measure(prepare)
