"""From operators to user-defined functions: the body that executors run, and the type it gives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DoubleType,
    FloatType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from spark_vision.errors import InputTypeError
from spark_vision.executor.environment import HubEnvironment
from spark_vision.operators import (
    OPERATORS,
    EmbeddingOperator,
    ImageOperator,
    Operator,
    reads_images,
)
from spark_vision.spark.arrow_udf import ArrowBody, Batch, make_arrow_udf

if TYPE_CHECKING:
    from pyspark.accumulators import Accumulator


PLACEMENT_TYPE = StructType(
    [
        StructField("host", StringType()),
        StructField("executor", StringType()),
        StructField("device", StringType()),
        StructField("server_pid", LongType()),
        StructField("loaded_at", TimestampType()),
        StructField("load_seconds", DoubleType()),
        StructField("dtype", StringType()),
        StructField("fingerprint", StringType()),
    ]
)


@dataclass(frozen=True)
class ImagesBody:
    """What the executors run, as it is pickled: it imports torch there, never on the driver.

    Attributes:
        operators: What to compute of each image.
        names: The field of each operator in the struct that is given; None for a single operator,
            whose value is given bare.
        with_status: Give structs of value, status and error as the values.
        environment: The driver's settings of the Hugging Face hub.
        statuses: A counter for each operator, or none.
        keys: What one more column lists for each row, by which an error names it.
    """

    operators: tuple[ImageOperator, ...]
    names: tuple[str, ...] | None
    with_status: bool
    environment: HubEnvironment
    statuses: tuple["Accumulator[dict[str, int]]", ...]
    keys: tuple[str, ...] = ()

    def __call__(self, batches: Iterator[Batch]) -> Iterator[pa.Array]:
        """Give what the operators make of the images, in order."""
        from spark_vision.executor.image_columns import compute_images
        from spark_vision.executor.task import current_task

        for arrays in compute_images(
            _check_arguments(
                batches, _function_name(self.operators), self.operators, is_keyed=bool(self.keys)
            ),
            self.operators,
            current_task(self.environment),
            with_status=self.with_status,
            keys=self.keys,
            counts=[counter.add for counter in self.statuses],
        ):
            if self.names is None:
                yield arrays[0]
            else:
                yield pa.StructArray.from_arrays(arrays, names=list(self.names))


@dataclass(frozen=True)
class TextsBody:
    """As ImagesBody, for an operator over texts."""

    operator: EmbeddingOperator
    with_status: bool
    environment: HubEnvironment
    statuses: "Accumulator[dict[str, int]] | None"
    keys: tuple[str, ...] = ()

    def __call__(self, arrays: Iterator[Batch]) -> Iterator[pa.Array]:
        """Give the embeddings of the texts, in order."""
        from spark_vision.executor.embedding import embed_texts
        from spark_vision.executor.task import current_task

        yield from embed_texts(
            _check_arguments(arrays, "embed_text", [self.operator], is_keyed=bool(self.keys)),
            self.operator,
            current_task(self.environment),
            with_status=self.with_status,
            keys=self.keys,
            count=self.statuses.add if self.statuses is not None else None,
        )


@dataclass(frozen=True)
class PlacementBody:
    """As ImagesBody, for `model_placement` of any operator."""

    operator: Operator
    environment: HubEnvironment

    def __call__(self, batches: Iterator[Batch]) -> Iterator[pa.Array]:
        """Give the placements of the models that computed the rows, in order."""
        from spark_vision.executor.placement_rows import place_rows
        from spark_vision.executor.task import current_task

        checked = _check_arguments(batches, "model_placement", [self.operator])
        yield from place_rows(checked, self.operator, current_task(self.environment))


def placement_udf(operator: Operator) -> Any:
    """Make the UDF that computes an operator and says where; it is never deterministic.

    Raises:
        InputTypeError: The operator is not an instance of an operator class.
    """
    _check_is_operator(operator)
    body = PlacementBody(operator, HubEnvironment.capture())
    return make_arrow_udf(body, PLACEMENT_TYPE, "model_placement").asNondeterministic()


def _check_arguments(
    batches: Iterator[Batch],
    function: str,
    operators: Sequence[Operator],
    *,
    is_keyed: bool = False,
) -> Iterator[Batch]:
    """Refuse a call with more or fewer columns than its operators read; SQL does not check it."""
    reads = dict.fromkeys(name for operator in operators for name in operator.reads)
    takes = [f"{name}s" for name in reads]
    for batch in batches:
        given = (len(batch) if isinstance(batch, tuple) else 1) - is_keyed
        if not 1 <= given <= len(takes):
            raise InputTypeError(
                f"a function of {function} got {given} columns; allowed: {takes[0]}"
                + "".join(f", and perhaps {each}" for each in takes[1:])
            )
        yield batch


def operator_udf(
    operator: Operator,
    *,
    with_status: bool = False,
    deterministic: bool = False,
    statuses: "Accumulator[dict[str, int]] | None" = None,
    keys: Sequence[str] = (),
) -> Any:
    """Make the UDF that computes one operator.

    Args:
        operator: Any of `OPERATORS`.
        with_status: Return a struct of value, status and error instead of the bare value.
        deterministic: Let Spark move, repeat or merge calls as it does with pure functions. Without
            it each row is computed once, and Spark refuses the function in some places.
        statuses: Collects the number of rows by status as tasks end (classic sessions).
        keys: Give a function of one more column, of arrays of strings: values of these names, by
            which an error names a row.

    Returns:
        A user-defined function of one column; for captions, of one or of two: images and prompts.

    Raises:
        InputTypeError: The operator is not an instance of an operator class.
    """
    _check_is_operator(operator)
    environment = HubEnvironment.capture()
    body: ArrowBody
    if reads_images(operator):
        counters = () if statuses is None else (statuses,)
        body = ImagesBody((operator,), None, with_status, environment, counters, tuple(keys))
    else:
        # What reads texts gives vectors.
        texts = cast(EmbeddingOperator, operator)
        body = TextsBody(texts, with_status, environment, statuses, tuple(keys))
    made = make_arrow_udf(body, _return_type(operator, with_status), _function_name([operator]))
    return made if deterministic else made.asNondeterministic()


def images_udf(
    operators: Mapping[str, ImageOperator],
    statuses: "Mapping[str, Accumulator[dict[str, int]] | None]",
    *,
    keys: Sequence[str] = (),
) -> Any:
    """Make the UDF that computes several operators of each image, which is decoded once.

    Args:
        operators: What to compute, by the name of its field; they read an image alike.
        statuses: Collect the number of rows by status, for each name; None where there is none.
        keys: As for `operator_udf`.

    Returns:
        A user-defined function of images, or of images and prompts: a struct of structs.
    """
    counters = tuple(each for name in operators if (each := statuses[name]) is not None)
    body = ImagesBody(
        tuple(operators.values()),
        tuple(operators),
        True,
        HubEnvironment.capture(),
        counters,
        tuple(keys),
    )
    fields = [StructField(name, value_type(operator)) for name, operator in operators.items()]
    made = make_arrow_udf(body, StructType(fields), _function_name([*operators.values()]))
    return made.asNondeterministic()


def _check_is_operator(operator: object) -> None:
    if not isinstance(operator, Operator):
        shown = operator.__name__ if isinstance(operator, type) else type(operator).__name__
        hint = f"write {shown}(...)" if shown in OPERATORS else "make one and pass it"
        raise InputTypeError(f"got {shown}; allowed: an instance of {', '.join(OPERATORS)}: {hint}")


def _return_type(operator: Operator, with_status: bool) -> DataType:
    struct = value_type(operator)
    return struct if with_status else struct[0].dataType


def value_type(operator: Operator) -> StructType:
    """Return the struct of a row's value (the first field), its status and its error."""
    value, *more = operator.value_fields.items()
    fields = [value, ("status", "string"), ("error", "string"), *more]
    return StructType([StructField(name, _parse_type(kind)) for name, kind in fields])


def _parse_type(kind: str) -> DataType:
    """Read a type; pyspark's own parser needs a session."""
    if kind.startswith("array<"):
        return ArrayType(_parse_type(kind.removeprefix("array<").removesuffix(">")))
    return {"float": FloatType(), "string": StringType(), "boolean": BooleanType()}[kind]


def _function_name(operators: Sequence[Operator]) -> str:
    """Name a UDF in Spark's plans."""
    names = sorted({operator.function for operator in operators})
    return "_and_".join(names)
