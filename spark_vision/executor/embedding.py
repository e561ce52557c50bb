"""Embeds a task's images and texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from spark_vision.errors import InvalidOptionError, RowFailure, Status
from spark_vision.executor.arrays import (
    Outcome,
    build_array,
    check_texts,
    finite_rows,
    read_texts,
)
from spark_vision.executor.batching import OUTPUT_ROW_COUNT, map_ahead, regroup, thread_pool
from spark_vision.executor.devices import prepare_device
from spark_vision.executor.failures import CountStatuses, RowNames, check_rows
from spark_vision.executor.inference import compute_batches, compute_rows
from spark_vision.executor.model_access import load_once, open_checkpoint, reach_model
from spark_vision.executor.task import Task
from spark_vision.models.checkpoints import Checkpoint
from spark_vision.models.pixel_batches import stack_pixels
from spark_vision.models.protocols import (
    ImageEmbedder,
    ImagePreprocessor,
    TextEmbedder,
)
from spark_vision.models.tokenizer import load_tokenizer
from spark_vision.operators import (
    EmbeddingOperator,
    ImageEmbeddingOperator,
    ImageVectorOperator,
)

IMAGES_PER_THREAD_HOP = 32
TOKENIZED_AHEAD_COUNT = 2
TRIAL_HEIGHT, TRIAL_WIDTH = 375, 500


class ImageVectors(ABC):
    """Base class of what is computed from the vectors of one task's images.

    Args:
        operator: What to compute.
        task: Its resources.

    Raises:
        SparkVisionError: The operator cannot run here.
    """

    portion_row_count = IMAGES_PER_THREAD_HOP

    def __init__(self, operator: ImageVectorOperator, task: Task) -> None:
        # Its import loads torchvision, which texts do not need.
        from spark_vision.models.preprocessing import load_preprocessor

        checkpoint, self._dimension = open_checkpoint(operator, task)
        self._pooling = operator.effective_pooling
        self._batch_size = operator.batch_size
        self._preprocessor: ImagePreprocessor = load_once(
            load_preprocessor, checkpoint, operator.image_processor_kwargs
        )
        device = prepare_device(operator, task)
        self._reached = reach_model(checkpoint, operator, device, task)
        self._model: ImageEmbedder = self._reached.model
        if operator.image_processor_kwargs:
            _try_settings(self._model, self._preprocessor, operator)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which an image is resized before it is cropped."""
        return self._preprocessor.resized_size(height, width)

    def prepare(self, image: torch.Tensor, prompt: str | None) -> torch.Tensor:
        """Preprocess one decoded image for the model; called by several threads."""
        return self._preprocessor(image)

    def compute(self, portions: Iterable[list[torch.Tensor | RowFailure]]) -> Iterator[list[Any]]:
        """Compute prepared rows; yields outcomes in the order of the rows."""
        return compute_batches(
            self._reached,
            regroup(portions, self._batch_size),
            self._compute_batch,
            kind=lambda pixels: pixels.shape,
        )

    @abstractmethod
    def finish(self, vectors: torch.Tensor) -> list[Any]:
        """Return the outcome of each image of a batch; called by several threads.

        Args:
            vectors: As from `ImageEmbedder.embed_images`.
        """

    def _compute_batch(self, pixels: list[torch.Tensor]) -> list[Any]:
        scaling = self._preprocessor.scaling
        vectors = self._model.embed_images(stack_pixels(pixels), scaling, self._pooling)
        return self.finish(vectors)


class ImageEmbeddings(ImageVectors):
    """Computes the vectors of one task's images; see `ImageVectors`."""

    def __init__(self, operator: ImageEmbeddingOperator, task: Task) -> None:
        super().__init__(operator, task)
        self._operator = operator

    def finish(self, vectors: torch.Tensor) -> list[Outcome]:
        """Normalize the vectors of a batch."""
        return finite_rows(_normalize(vectors, self._operator))

    def build(self, outcomes: Sequence[Outcome], with_status: bool) -> pa.Array:
        """Build Arrow lists, or structs of embedding, status and error."""
        return _build(outcomes, self._operator, self._dimension, with_status)


def embed_texts(
    arrays: Iterable[pa.Array],
    operator: EmbeddingOperator,
    task: Task,
    *,
    with_status: bool = False,
    keys: Sequence[str] = (),
    count: CountStatuses | None = None,
) -> Iterator[pa.Array]:
    """Compute a vector per text; equal texts of an Arrow array are computed once.

    Args:
        arrays: Arrow arrays of strings, of any length.
        operator: What to compute.
        task: Its resources.
        with_status: Yield structs of embedding, status and error instead of vectors.
        keys: As for `compute_columns`.
        count: Called with the number of rows by status, once per output array.

    Yields:
        Arrays whose lengths differ from the input's; elements are in the order of the input.

    Raises:
        SparkVisionError: The operator cannot run here; a row failed with `on_error="raise"`; more
            rows failed than `max_failure_rate` allows.
    """
    names = RowNames([operator], keys)
    checkpoint, dimension = open_checkpoint(operator, task)
    outcomes = _text_outcomes(names.watch(arrays), operator, task, checkpoint)
    for (rows,) in check_rows([outcomes], [operator], names, [count] if count else []):
        yield _build(rows, operator, dimension, with_status)


def _text_outcomes(
    arrays: Iterable[pa.Array], operator: EmbeddingOperator, task: Task, checkpoint: Checkpoint
) -> Iterator[list[Outcome]]:
    """Load the model; yield lists of outcomes in the order of the texts."""
    tokenizer = load_once(load_tokenizer, checkpoint)
    device = prepare_device(operator, task)
    reached = reach_model(checkpoint, operator, device, task)
    model: TextEmbedder = reached.model

    def embed_chunk(tokens: dict[str, torch.Tensor]) -> list[Outcome]:
        def compute(rows: list[int]) -> list[Outcome]:
            chosen = {name: ids[rows] for name, ids in tokens.items()}
            return finite_rows(_normalize(model.embed_texts(chosen), operator))

        row_count = len(next(iter(tokens.values())))
        return compute_rows(range(row_count), compute, kind=lambda _: None)

    def embed(texts: Iterable[list[str]]) -> Iterator[list[Outcome]]:
        tokens = map_ahead(
            tokenizing, tokenizer, texts, lambda count: count < TOKENIZED_AHEAD_COUNT
        )
        return map_ahead(calls, embed_chunk, tokens, lambda count: count <= reached.call_count)

    with (
        thread_pool(1, "spark-vision-texts") as tokenizing,
        thread_pool(reached.call_count, "spark-vision-calls", reached.prepare_thread) as calls,
    ):
        for array in arrays:
            yield from _embed_distinct(array, operator, embed)


def _embed_distinct(
    array: pa.Array,
    operator: EmbeddingOperator,
    embed: Callable[[Iterable[list[str]]], Iterator[list[Outcome]]],
) -> Iterator[list[Outcome]]:
    encoded = pc.dictionary_encode(check_texts(array, "embed_text"))
    texts = [text for text in read_texts(encoded.dictionary) if text is not None]
    starts = range(0, len(texts), operator.batch_size)
    chunks = (texts[start : start + operator.batch_size] for start in starts)
    distinct = list(chain.from_iterable(embed(chunks)))
    null = RowFailure(Status.NULL_INPUT, "the text is null")
    indices = encoded.indices.to_pylist()
    for start in range(0, len(indices), OUTPUT_ROW_COUNT):
        rows = indices[start : start + OUTPUT_ROW_COUNT]
        yield [null if index is None else distinct[index] for index in rows]


def _build(
    outcomes: Sequence[Outcome],
    operator: EmbeddingOperator,
    dimension: int | None,
    with_status: bool,
) -> pa.Array:
    if dimension is None:
        raise AssertionError(f"a model for {type(operator).__name__} has a dimension")
    tokens = operator.effective_pooling == "tokens"
    return build_array(
        outcomes, dimension, operator.on_error, tokens=tokens, with_status=with_status
    )


def _normalize(vectors: torch.Tensor, operator: EmbeddingOperator) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1) if operator.normalize else vectors


def _try_settings(
    model: ImageEmbedder,
    preprocessor: ImagePreprocessor,
    operator: ImageVectorOperator,
) -> None:
    """Embed one gray image of typical size, so that wrong settings fail the job and not every row.

    Raises:
        InvalidOptionError: With these settings the model cannot compute an image.
    """
    gray = torch.full((TRIAL_HEIGHT, TRIAL_WIDTH, 3), 128, dtype=torch.uint8).permute(2, 0, 1)
    try:
        pixels = stack_pixels([preprocessor(gray)])
        vector = model.embed_images(pixels, preprocessor.scaling, operator.effective_pooling)
    except torch.OutOfMemoryError:
        raise
    except (RowFailure, RuntimeError, ValueError, TypeError) as error:
        raise _refusal(operator, f"{type(error).__name__}: {error}") from error
    if not torch.isfinite(vector).all():
        raise _refusal(operator, "the vector of a gray image is not finite")


def _refusal(operator: ImageVectorOperator, reason: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"{type(operator).__name__}.image_processor_kwargs got {operator.image_processor_kwargs}, "
        f"with which the checkpoint {operator.checkpoint_name} cannot compute an image "
        f"({reason}); change or remove the settings"
    )
