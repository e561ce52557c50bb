"""Captions of a task's images: prompts of the rows, batches of similar length, texts in Arrow."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import torch

from spark_vision.errors import RowFailure, Status
from spark_vision.executor.inference import compute_rows
from spark_vision.executor.length_bucketing import compute_alike
from spark_vision.executor.model_access import (
    open_caption_preprocessor,
    open_checkpoint,
    prepare_device,
    reach_model,
    stamp_of,
)
from spark_vision.executor.outcomes import add_statuses
from spark_vision.executor.task import Task
from spark_vision.models.protocols import CaptionInput, GenerationSettings, ImageCaptioner
from spark_vision.operators import QwenVLImageUnderstanding


class Caption(NamedTuple):
    """What was written about one image, and whether it was cut at its greatest length."""

    text: str
    truncated: bool


class Captions:
    """Computes the captions of one task.

    Args:
        operator: What to compute.
        task: What it may use.

    Raises:
        SparkVisionError: The operator cannot run here.
    """

    # An image can be large, and one after the other each has a thread at once.
    portion_row_count = 1

    def __init__(self, operator: QwenVLImageUnderstanding, task: Task) -> None:
        checkpoint, _ = open_checkpoint(operator, task)
        self._operator = operator
        self._preprocessor = open_caption_preprocessor(checkpoint, stamp_of(checkpoint), operator)
        reached = reach_model(
            checkpoint,
            operator,
            prepare_device(operator, task),
            task,
            flash_attention=operator.use_flash_attention_2,
        )
        self._model: ImageCaptioner = reached.model
        self.placement = reached.placement
        self._settings = GenerationSettings(
            max_new_tokens=operator.max_caption_length,
            do_sample=operator.do_sample,
            temperature=operator.temperature,
            top_k=operator.top_k,
            top_p=operator.top_p,
            repetition_penalty=operator.repetition_penalty,
        )

    def prepare(self, image: torch.Tensor, prompt: str | None) -> CaptionInput:
        """Bring one decoded image and its prompt to what the model takes; called by threads."""
        asked = prompt if prompt is not None and prompt.strip() else self._operator.prompt
        if asked is None:
            raise RowFailure(
                Status.BAD_PROMPT, "the row has no prompt, and neither has the operator"
            )
        return self._preprocessor.prepare(image, asked)

    def compute(
        self, portions: Iterable[list[CaptionInput | RowFailure]]
    ) -> Iterator[list[Caption | RowFailure]]:
        """Write about prepared rows; a row's outcome comes in its place."""
        return compute_alike(
            portions,
            lambda rows: compute_rows(rows, self._write, kind=lambda _: None),
            length=lambda row: len(row.token_ids),
            batch_size=self._operator.batch_size,
        )

    def build(self, outcomes: Sequence[Caption | RowFailure], with_status: bool) -> pa.Array:
        """Make Arrow's strings, or structs of caption, status, error and truncated."""
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
            else RowFailure(Status.NONFINITE, "the model gave NaN or infinity")
            for text, is_cut, is_finite in zip(
                self._preprocessor.decode(generated),
                generated.truncated.tolist(),
                generated.finite.tolist(),
                strict=True,
            )
        ]
