"""Tags images, or vectors of images: the vectors of the tags are computed once per worker."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from spark_vision.errors import InputTypeError, InvalidOptionError, RowFailure, Status
from spark_vision.executor.arrays import add_statuses, build_lists
from spark_vision.executor.batching import OUTPUT_ROW_COUNT
from spark_vision.executor.devices import prepare_compute_thread, prepare_device
from spark_vision.executor.embedding import ImageVectors
from spark_vision.executor.failures import CountStatuses, RowNames, check_rows
from spark_vision.executor.model_access import (
    keep_recent,
    load_once,
    open_checkpoint,
    reach_model,
    stamp_of,
)
from spark_vision.executor.task import Task
from spark_vision.models.checkpoints import Checkpoint
from spark_vision.models.protocols import LogitTerms, TextClassifier
from spark_vision.models.tokenizer import load_tokenizer
from spark_vision.operators import ClipImageTags, ClipVectorTags, TagOperator

KEPT_TAG_LIST_COUNT = 8

TAG_TYPE = pa.struct({"tag": pa.string(), "score": pa.float32()})
TAGS_TYPE = pa.list_(pa.field("element", TAG_TYPE))


class RankedTags(NamedTuple):
    """The best tags of one row, in descending order of their scores.

    Attributes:
        indices: int64 `[tags]`: positions in the operator's list of tags.
        scores: float32 `[tags]`.
    """

    indices: np.ndarray
    scores: np.ndarray


class EmbeddedTags(NamedTuple):
    """The vectors of an operator's tags.

    Attributes:
        vectors: float64 `[tags, dimension]` of length 1.
        terms: How a cosine becomes a score.
    """

    vectors: torch.Tensor
    terms: LogitTerms


_embedded: OrderedDict[Hashable, EmbeddedTags] = OrderedDict()


class Tagger:
    """Ranks an operator's tags for vectors of images.

    Args:
        operator: Has the tags.
        task: Its resources; without a model in reach where this worker has embedded the tags.

    Raises:
        SparkVisionError: The operator cannot run here.
    """

    def __init__(self, operator: TagOperator, task: Task) -> None:
        checkpoint, _ = open_checkpoint(operator, task)
        device = prepare_device(operator, task)
        key = (checkpoint, stamp_of(checkpoint), operator.dtype, device, operator.class_texts)
        self._operator = operator
        self._embedded = keep_recent(
            _embedded,
            KEPT_TAG_LIST_COUNT,
            key,
            lambda: _embed_tags(operator, checkpoint, device, task),
        )

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._embedded.vectors.shape[1]

    def rank(self, vectors: torch.Tensor) -> list[RankedTags | RowFailure]:
        """Rank the tags for each vector; returned tags of equal scores are in the tags' order.

        Args:
            vectors: Floats `[rows, dimension]` of any length.
        """
        vectors = vectors.double()
        tags, (scale, bias) = self._embedded.vectors, self._embedded.terms
        logits = _normalize(vectors) @ tags.T * scale
        scores = logits.softmax(dim=1) if bias is None else torch.sigmoid(logits + bias)
        # Much faster than sorting all; equal scores are then put in the order of the tags.
        chosen = scores.topk(min(self._operator.top_k, len(tags)), dim=1, sorted=False).indices
        chosen = chosen.sort(dim=1).values
        ordered = scores.gather(1, chosen).sort(dim=1, descending=True, stable=True)
        unusable = RowFailure(Status.NONFINITE, "the vector is zero, or has NaN or infinity")
        return [
            RankedTags(indices, best) if is_usable else unusable
            for indices, best, is_usable in zip(
                chosen.gather(1, ordered.indices).numpy(),
                ordered.values.float().numpy(),
                _have_direction(vectors).tolist(),
                strict=True,
            )
        ]

    def build(self, outcomes: Sequence[RankedTags | RowFailure], with_status: bool) -> pa.Array:
        """Build Arrow lists of tags with scores, or structs of tags, status and error."""
        nothing = RankedTags(np.empty(0, np.int64), np.empty(0, np.float32))
        instead = nothing if self._operator.on_error == "zero" else None
        values = [instead if isinstance(row, RowFailure) else row for row in outcomes]
        present = [nothing, *(row for row in values if row is not None)]
        indices = pa.array(np.concatenate([row.indices for row in present]))
        scores = pa.array(np.concatenate([row.scores for row in present]))
        names = pa.array(self._operator.tags, pa.string()).take(indices)
        elements = pa.StructArray.from_arrays([names, scores], fields=list(TAG_TYPE))
        lengths = np.array([0 if row is None else len(row.indices) for row in values], np.int32)
        lists = build_lists(lengths, elements, values, TAGS_TYPE)
        return add_statuses("tags", lists, outcomes) if with_status else lists


class ImageTags(ImageVectors):
    """Computes the tags of one task's images; see `ImageVectors`."""

    def __init__(self, operator: ClipImageTags, task: Task) -> None:
        super().__init__(operator, task)
        self._tagger = Tagger(operator, task)

    def finish(self, vectors: torch.Tensor) -> list[RankedTags | RowFailure]:
        """Rank the tags for the vectors of a batch."""
        return self._tagger.rank(vectors)

    def build(self, outcomes: Sequence[RankedTags | RowFailure], with_status: bool) -> pa.Array:
        """Build the Arrow array of some outcomes."""
        return self._tagger.build(outcomes, with_status)


def tag_vectors(
    arrays: Iterable[pa.Array],
    operator: ClipVectorTags,
    task: Task,
    *,
    with_status: bool = False,
    keys: Sequence[str] = (),
    count: CountStatuses | None = None,
) -> Iterator[pa.Array]:
    """Tag vectors of images, normalized or not.

    Args:
        arrays: Arrow arrays of lists of floats, of any length.
        operator: What to compute.
        task: Its resources.
        with_status: Yield structs of tags, status and error instead of tags.
        keys: As for `compute_columns`.
        count: Called with the number of rows by status, once per output array.

    Yields:
        Arrays whose lengths differ from the input's; elements are in the order of the input.

    Raises:
        InputTypeError: The arrays have another type, or a vector has another dimension.
        SparkVisionError: The operator cannot run here; a row failed with `on_error="raise"`; more
            rows failed than `max_failure_rate` allows.
    """
    names = RowNames([operator], keys)
    tagger = Tagger(operator, task)
    # Nothing else computes in this worker meanwhile.
    prepare_compute_thread(torch.device("cpu"), task.cpus)
    outcomes = _rank_arrays(names.watch(arrays), tagger, operator)
    for (rows,) in check_rows([outcomes], [operator], names, [count] if count else []):
        yield tagger.build(rows, with_status)


def _rank_arrays(
    arrays: Iterable[pa.Array], tagger: Tagger, operator: ClipVectorTags
) -> Iterator[list[RankedTags | RowFailure]]:
    null = RowFailure(Status.NULL_INPUT, "the vector is null")
    for array in arrays:
        for start in range(0, len(array), OUTPUT_ROW_COUNT):
            rows = array.slice(start, OUTPUT_ROW_COUNT)
            ranked = iter(tagger.rank(_read_vectors(rows, tagger.dimension, operator)))
            yield [next(ranked) if is_valid else null for is_valid in rows.is_valid().to_pylist()]


def _read_vectors(array: pa.Array, dimension: int, operator: ClipVectorTags) -> torch.Tensor:
    """Read the vectors that are not null; a null within a vector is read as NaN."""
    if pa.types.is_null(array.type):  # a pandas batch with only nulls
        array = array.cast(pa.list_(pa.float32()))
    kind = array.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (is_list and pa.types.is_floating(kind.value_type)):
        raise InputTypeError(
            f"tag_vectors got a column of {kind}; allowed: array<float> or array<double>, one "
            "vector per row"
        )
    vectors = array.drop_null()
    for length in pc.unique(pc.list_value_length(vectors)).to_pylist():
        if length != dimension:
            raise InputTypeError(
                f"tag_vectors got a vector of {length} numbers, and those of "
                f"{operator.checkpoint_name} have {dimension}; allowed: vectors of that "
                "checkpoint's ClipImageEmbedding"
            )
    numbers = pc.list_flatten(vectors).cast(pa.float64())
    flat = np.array(numbers.to_numpy(zero_copy_only=False))
    return torch.from_numpy(flat.reshape(-1, dimension))


def _embed_tags(
    operator: TagOperator, checkpoint: Checkpoint, device: torch.device, task: Task
) -> EmbeddedTags:
    tokenizer = load_once(load_tokenizer, checkpoint)
    model: TextClassifier = reach_model(checkpoint, operator, device, task).model
    texts, size = list(operator.class_texts), operator.batch_size
    batches = [texts[start : start + size] for start in range(0, len(texts), size)]
    vectors = torch.cat([model.embed_texts(tokenizer(batch)) for batch in batches]).double()
    for tag, is_usable in zip(operator.tags, _have_direction(vectors).tolist(), strict=True):
        if not is_usable:
            raise InvalidOptionError(
                f"{type(operator).__name__}.tags got {tag!r}, for which the text tower of "
                f"{operator.checkpoint_name} returned zeros, NaN or infinity; check the "
                "checkpoint, or use dtype='float32'"
            )
    return EmbeddedTags(_normalize(vectors), model.logit_terms())


def _normalize(vectors: torch.Tensor) -> torch.Tensor:
    # torch's own function leaves very short vectors shorter than 1; and squares of very small or
    # large numbers are 0 or infinite.
    vectors = vectors / vectors.abs().amax(dim=1, keepdim=True)
    lengths: torch.Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / lengths


def _have_direction(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.isfinite().all(dim=1) & vectors.any(dim=1)
