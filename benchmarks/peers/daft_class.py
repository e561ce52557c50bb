"""Daft: its own expressions decode and resize, a class holds the model."""

from collections.abc import Callable

import daft
import numpy as np
import pyarrow as pa
from contender import CORE_COUNT, TorchModel, Work, answer_rounds, parquet_files
from daft import DataType, Series, col
from daft.functions import decode_image, resize

DIMENSION = 768


def prepare(work: Work) -> Callable[[], object]:
    size = work.image_size

    # Decoding has all cores already, and a second process was no faster.
    @daft.cls(use_process=False)
    class Embed:
        def __init__(self) -> None:
            self._model = TorchModel(work.checkpoint, CORE_COUNT)

        @daft.method.batch(
            return_dtype=DataType.list(DataType.float32()), batch_size=work.batch_size
        )
        def __call__(self, images: Series) -> pa.Array:
            arrow = images.to_arrow()
            is_null = arrow.is_null().to_numpy(zero_copy_only=False)
            flat = arrow.fill_null([0] * (size * size * 3)) if is_null.any() else arrow
            pixels = flat.flatten().to_numpy(zero_copy_only=False)
            vectors = self._model.embed(pixels.reshape(-1, size, size, 3))
            offsets = np.arange(len(vectors) + 1, dtype=np.int32) * DIMENSION
            return pa.ListArray.from_arrays(offsets, vectors.ravel(), mask=pa.array(is_null))

    embed = Embed()

    def run() -> None:
        image = resize(decode_image(col("content"), on_error="null"), size, size)
        pixels = image.cast(DataType.image("RGB", size, size))
        rows = daft.read_parquet(parquet_files(work)).select("id", embed(pixels).alias("embedding"))
        rows.write_parquet(work.output, write_mode="overwrite")

    return run


if __name__ == "__main__":
    answer_rounds(prepare)
