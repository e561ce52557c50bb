"""The body of every embedding function: Arrow arrays of images or texts in, vectors out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from spark_vision.errors import (
    InputTypeError,
    InvalidOptionError,
    RowFailure,
    SparkVisionError,
)
from spark_vision.executor.allocator import keep_freed_memory
from spark_vision.executor.batching import gather, map_ahead, regroup, working_threads
from spark_vision.executor.devices import choose_device
from spark_vision.executor.image_rows import ImageRows
from spark_vision.executor.inference import Outcome, compute_rows
from spark_vision.executor.model_host import ReachedModel, Stamp, reach_model, stamp_of
from spark_vision.executor.task import Task
from spark_vision.executor.trial import try_settings
from spark_vision.executor.vectors import build_array, count_statuses
from spark_vision.models.checkpoints import Checkpoint, resolve_checkpoint
from spark_vision.models.families import (
    ModelDescription,
    check_operator,
    load_preprocessor,
    load_tokenizer,
)
from spark_vision.models.pixel_batches import stack_pixels
from spark_vision.models.protocols import (
    ImageEmbedder,
    ImagePreprocessor,
    TextEmbedder,
    TextTokenizer,
)
from spark_vision.operators import (
    ClipImageEmbedding,
    ClipTextEmbedding,
    EmbeddingOperator,
    ImageViTEmbedding,
    Operator,
)
from spark_vision.status import Status

OUTPUT_ROW_COUNT = 256
OUTPUT_WAIT_SECONDS = 1.0
TOKENIZED_AHEAD_COUNT = 2

CountStatuses = Callable[[dict[str, int]], None]
ImageEmbedding = ImageViTEmbedding | ClipImageEmbedding


def embed_images(
    arrays: Iterable[pa.Array],
    operator: ImageEmbedding,
    task: Task,
    *,
    with_status: bool = False,
    count: CountStatuses | None = None,
) -> Iterator[pa.Array]:
    """Compute a vector per image.

    Args:
        arrays: Images as `images.sources.open_column` reads them, of any lengths.
        operator: What to compute.
        task: What it may use.
        with_status: Give structs of embedding, status and error instead of bare vectors.
        count: Called with the number of rows by status, once per array given back.

    Yields:
        Arrays whose lengths differ from those taken; their elements are in the order of the input.

    Raises:
        SparkVisionError: The operator cannot run here; with `on_error="raise"`, a row failed.
    """
    yield from _give_back(open_images(arrays, operator, task), operator, with_status, count)


def embed_texts(
    arrays: Iterable[pa.Array],
    operator: ClipTextEmbedding,
    task: Task,
    *,
    with_status: bool = False,
    count: CountStatuses | None = None,
) -> Iterator[pa.Array]:
    """Compute a vector per text; equal texts of an Arrow array are computed once.

    Arguments, results and errors are those of `embed_images`.
    """
    yield from _give_back(open_texts(arrays, operator, task), operator, with_status, count)


@dataclass(frozen=True)
class Opened:
    """An operator's work on a task's rows, begun and not yet done.

    Attributes:
        model: The model, reached.
        description: What is known of it.
        outcomes: Computes the rows as it is read: a list per batch, in the order of the input.
    """

    model: ReachedModel
    description: ModelDescription
    outcomes: Iterator[list[Outcome]]


def open_images(arrays: Iterable[pa.Array], operator: ImageEmbedding, task: Task) -> Opened:
    """Reach an operator's model and prepare to embed images; see `embed_images`."""
    checkpoint, description = _open_checkpoint(operator)
    preprocessor = _preprocessor(checkpoint, stamp_of(checkpoint), operator.image_processor_kwargs)
    reached = reach_model(checkpoint, operator, _prepare_device(operator, task), task)
    model: ImageEmbedder = reached.model
    if operator.image_processor_kwargs:
        try_settings(model, preprocessor, operator)

    def compute(pixels: list[torch.Tensor]) -> torch.Tensor:
        batch = stack_pixels(pixels)
        vectors = model.embed_images(batch, preprocessor.scaling, operator.effective_pooling)
        return _normalize(vectors, operator)

    portions = ImageRows(operator, preprocessor, task.cpus).prepare(arrays)
    outcomes = (
        compute_rows(batch, compute, kind=lambda pixels: pixels.shape)
        for batch in regroup(portions, operator.batch_size)
    )
    return Opened(reached, description, outcomes)


def open_texts(arrays: Iterable[pa.Array], operator: ClipTextEmbedding, task: Task) -> Opened:
    """Reach an operator's model and prepare to embed texts; see `embed_texts`."""
    checkpoint, description = _open_checkpoint(operator)
    tokenizer = _tokenizer(checkpoint, stamp_of(checkpoint))
    reached = reach_model(checkpoint, operator, _prepare_device(operator, task), task)
    model: TextEmbedder = reached.model

    def embed_chunk(tokens: dict[str, torch.Tensor]) -> list[Outcome]:
        def compute(rows: list[int]) -> torch.Tensor:
            chosen = {name: ids[rows] for name, ids in tokens.items()}
            return _normalize(model.embed_texts(chosen), operator)

        row_count = len(next(iter(tokens.values())))
        return compute_rows(range(row_count), compute, kind=lambda _: None)

    def outcomes() -> Iterator[list[Outcome]]:
        with working_threads(1, "spark-vision-texts") as pool:
            for array in arrays:
                yield from _embed_distinct(array, operator, pool, tokenizer, embed_chunk)

    return Opened(reached, description, outcomes())


def _embed_distinct(
    array: pa.Array,
    operator: ClipTextEmbedding,
    pool: ThreadPoolExecutor,
    tokenizer: TextTokenizer,
    embed_chunk: Callable[[dict[str, torch.Tensor]], list[Outcome]],
) -> Iterator[list[Outcome]]:
    if pa.types.is_null(array.type):  # a pandas batch of nulls alone
        array = array.cast(pa.string())
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise InputTypeError(
            f"embed_text got a column of {array.type}; allowed: string. Cast it, or choose another"
        )
    encoded = pc.dictionary_encode(array)
    # Spark does not check that a string is UTF-8, and one that is not must not end the task.
    stored = encoded.dictionary.cast(pa.large_binary()).to_pylist()
    texts = [text.decode("utf-8", "replace") for text in stored]
    starts = range(0, len(texts), operator.batch_size)
    chunks = (texts[start : start + operator.batch_size] for start in starts)
    tokenized = map_ahead(pool, tokenizer, chunks, lambda waiting: waiting < TOKENIZED_AHEAD_COUNT)
    distinct = [outcome for tokens in tokenized for outcome in embed_chunk(tokens)]
    null = RowFailure(Status.NULL_INPUT, "the text is null")
    indices = encoded.indices.to_pylist()
    for start in range(0, len(indices), OUTPUT_ROW_COUNT):
        rows = indices[start : start + OUTPUT_ROW_COUNT]
        yield [null if index is None else distinct[index] for index in rows]


def _give_back(
    opened: Opened,
    operator: EmbeddingOperator,
    with_status: bool,
    count: CountStatuses | None,
) -> Iterator[pa.Array]:
    tokens = operator.effective_pooling == "tokens"
    for rows in gather(opened.outcomes, OUTPUT_ROW_COUNT, OUTPUT_WAIT_SECONDS):
        if count is not None:
            count(count_statuses(rows))
        yield build_array(
            rows,
            opened.description.dimension,
            operator.on_error,
            tokens=tokens,
            with_status=with_status,
        )


def _normalize(vectors: torch.Tensor, operator: EmbeddingOperator) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1) if operator.normalize else vectors


def _prepare_device(operator: Operator, task: Task) -> torch.device:
    device = choose_device(operator, task)
    keep_freed_memory()
    # Spark fixes OMP_NUM_THREADS when a worker starts; a later task of it may own other cores.
    torch.set_num_threads(task.cpus)
    return device


def _open_checkpoint(operator: Operator) -> tuple[Checkpoint, ModelDescription]:
    checkpoint = resolve_checkpoint(operator)
    return checkpoint, check_operator(checkpoint, operator)


@lru_cache(maxsize=8)
def _preprocessor(
    checkpoint: Checkpoint, stamp: Stamp, kwargs: Mapping[str, Any] | None
) -> ImagePreprocessor:
    try:
        return load_preprocessor(checkpoint, kwargs)
    except SparkVisionError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        if not kwargs:
            raise
        raise InvalidOptionError(
            f"image_processor_kwargs got {kwargs}, which the image processor of "
            f"{checkpoint.folder} does not take ({error}); change or leave out the settings"
        ) from error


@lru_cache(maxsize=8)
def _tokenizer(checkpoint: Checkpoint, stamp: Stamp) -> TextTokenizer:
    return load_tokenizer(checkpoint)
