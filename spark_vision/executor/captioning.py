"""Captions of a task's images: prompts per row, rows of similar length, strings in Arrow."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import torch

from spark_vision.errors import RowFailure, Status
from spark_vision.executor.arrays import add_statuses
from spark_vision.executor.batching import compute_in_length_buckets
from spark_vision.executor.devices import prepare_device
from spark_vision.executor.inference import compute_batches
from spark_vision.executor.model_access import load_once, open_checkpoint, reach_model
from spark_vision.executor.task import Task
from spark_vision.models.caption_inputs import load_caption_preprocessor
from spark_vision.models.protocols import CaptionInput, GenerationSettings, ImageCaptioner
from spark_vision.operators import QwenVLImageUnderstanding

# Batches that the model gets at once: rows that end leave their places to others.
BATCHES_AT_ONCE = 8


class Caption(NamedTuple):
    """The text about one image, and whether it was truncated at the maximum length."""

    text: str
    truncated: bool


class Captions:
    """Computes the captions of one task.

    Args:
        operator: What to compute.
        task: Its resources.

    Raises:
        SparkVisionError: The operator cannot run here.
    """

    # Images can be large: one row per portion gives each image a thread at once.
    portion_row_count = 1

    def __init__(self, operator: QwenVLImageUnderstanding, task: Task) -> None:
        checkpoint, _ = open_checkpoint(operator, task)
        self._operator = operator
        self._preprocessor = load_once(load_caption_preprocessor, checkpoint, operator)
        device = prepare_device(operator, task)
        self._reached = reach_model(checkpoint, operator, device, task)
        self._model: ImageCaptioner = self._reached.model
        self._settings = GenerationSettings(
            max_new_tokens=operator.max_caption_length,
            do_sample=operator.do_sample,
            temperature=operator.temperature,
            top_k=operator.top_k,
            top_p=operator.top_p,
            repetition_penalty=operator.repetition_penalty,
        )

    def prepare(self, image: torch.Tensor, prompt: str | None) -> CaptionInput:
        """Prepare one decoded image and its prompt for the model; called by several threads."""
        asked = prompt if prompt is not None and prompt.strip() else self._operator.prompt
        if asked is None:
            raise RowFailure(Status.BAD_PROMPT, "neither the row nor the operator has a prompt")
        return self._preprocessor.prepare(image, asked)

    def compute(
        self, portions: Iterable[list[CaptionInput | RowFailure]]
    ) -> Iterator[list[Caption | RowFailure]]:
        """Generate captions of prepared rows; yields outcomes in the order of the rows."""
        return compute_in_length_buckets(
            portions,
            lambda batches: compute_batches(
                self._reached, batches, self._write, kind=lambda _: None
            ),
            length=lambda row: len(row.token_ids),
            batch_size=BATCHES_AT_ONCE * self._operator.batch_size,
        )

    def build(self, outcomes: Sequence[Caption | RowFailure], with_status: bool) -> pa.Array:
        """Build Arrow strings, or structs of caption, status, error and truncated."""
        instead = "" if self._operator.on_error == "zero" else None
        texts = pa.array(
            [instead if isinstance(row, RowFailure) else row.text for row in outcomes], pa.string()
        )
        if not with_status:
            return texts
        truncated = [None if isinstance(row, RowFailure) else row.truncated for row in outcomes]
        more = {"truncated": pa.array(truncated, pa.bool_())}
        return add_statuses("caption", texts, outcomes, more)

    def _write(self, rows: list[CaptionInput]) -> list[Caption | RowFailure]:
        batch = self._preprocessor.collate(rows)
        generated = self._model.generate(batch, self._preprocessor.scaling, self._settings)
        return [
            Caption(text, is_cut)
            if is_finite
            else RowFailure(Status.NONFINITE, "the model returned NaN or infinity")
            for text, is_cut, is_finite in zip(
                self._preprocessor.decode(generated),
                generated.truncated.tolist(),
                generated.finite.tolist(),
                strict=True,
            )
        ]
