"""Daft: its own expressions decode and resize, a class holds the model."""

from collections.abc import Callable

import daft
import numpy as np
import pyarrow as pa
from contender import CORE_COUNT, TorchModel, Work, measure
from daft import DataType, Series, col
from daft.functions import decode_image, resize


def prepare(work: Work) -> Callable[[], None]:
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
            stored = images.to_arrow().storage
            is_null = stored.is_null().to_numpy(zero_copy_only=False)
            # Flattening leaves out what is null.
            pixels = stored.flatten().to_numpy().reshape(-1, size, size, 3)
            vectors = self._model.embed(pixels)
            offsets = np.concatenate([[0], (~is_null).cumsum() * vectors.shape[1]])
            values = pa.array(vectors.ravel())
            return pa.ListArray.from_arrays(
                pa.array(offsets, pa.int32()), values, mask=pa.array(is_null)
            )

    embed = Embed()

    def run() -> None:
        image = resize(decode_image(col("content"), on_error="null"), size, size)
        pixels = image.cast(DataType.image("RGB", size, size))
        rows = daft.read_parquet(f"{work.source}/*.parquet").select(
            "id", embed(pixels).alias("embedding")
        )
        rows.write_parquet(work.output, write_mode="overwrite")

    return run


if __name__ == "__main__":
    measure(prepare)
