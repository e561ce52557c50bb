"""An operator that is not the package's: it names each image's colour, and runs no model."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from spark_vision.errors import RowFailure
from spark_vision.executor.batching import regroup
from spark_vision.operators import ImageOperator


@dataclass(frozen=True, kw_only=True)
class ImageColour(ImageOperator):
    """Names the colour that an image has most of: red, green or blue."""

    function = "caption_image"
    families = ("vit",)
    work = "image_colour:Colours"

    @property
    def value_fields(self) -> Mapping[str, str]:
        return {"colour": "string"}


class Colours:
    portion_row_count = 8

    def __init__(self, operator, task):
        self._batch_size = operator.batch_size

    def prepare(self, image, prompt):
        return image.float().mean(dim=(1, 2))

    def compute(self, portions):
        for batch in regroup(portions, self._batch_size):
            yield [
                row if isinstance(row, RowFailure) else ("red", "green", "blue")[int(row.argmax())]
                for row in batch
            ]

    def build(self, outcomes, with_status):
        values, statuses, errors = [], [], []
        for outcome in outcomes:
            failed = outcome if isinstance(outcome, RowFailure) else None
            values.append(None if failed else outcome)
            statuses.append(failed.status.value if failed else "ok")
            errors.append(str(failed) if failed else None)
        text = pa.string()
        arrays = [pa.array(each, text) for each in (values, statuses, errors)]
        if not with_status:
            return arrays[0]
        return pa.StructArray.from_arrays(arrays, names=["colour", "status", "error"])
