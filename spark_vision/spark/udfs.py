"""Creates user-defined functions from operators: the body that executors run and its type."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    FloatType,
    StringType,
    StructField,
    StructType,
)

from spark_vision.errors import InputTypeError
from spark_vision.executor.placement import PLACEMENT_TYPE, place_rows
from spark_vision.executor.spending import count_spent
from spark_vision.executor.task import HubEnvironment, current_task
from spark_vision.operators import ImageOperator, Operator
from spark_vision.spark.arrow_udf import Batch, make_arrow_udf
from spark_vision.spark.driver_checks import check_is_operator

if TYPE_CHECKING:
    from pyspark.accumulators import Accumulator


@dataclass(frozen=True)
class OperatorsBody:
    """What executors run. It is pickled, and imports torch on the executor, not on the driver.

    Attributes:
        operators: What to compute for each row; several of them read images.
        names: The field of each operator in the returned struct; None for a single operator, whose
            value is returned without a struct.
        with_status: Whether values are structs of value, status and error.
        environment: The driver's Hugging Face variables.
        statuses: One counter per operator, or none.
        spent: Counts what the tasks spend, as `executor.spending` names it; or None.
        keys: Names of the key values in one more column, by which an error identifies a row.
    """

    operators: tuple[Operator, ...]
    names: tuple[str, ...] | None = None
    with_status: bool = False
    environment: HubEnvironment = HubEnvironment()
    statuses: tuple["Accumulator[dict[str, int]]", ...] = ()
    spent: "Accumulator[dict[str, int]] | None" = None
    keys: tuple[str, ...] = ()

    def __call__(self, batches: Iterator[Batch]) -> Iterator[pa.Array]:
        """Yield the values of the operators, in the order of the rows."""
        return count_spent(self._compute, batches, None if self.spent is None else self.spent.add)

    def _compute(self, batches: Iterator[Batch]) -> Iterator[pa.Array]:
        from spark_vision.executor.columns import compute_columns

        for arrays in compute_columns(
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


def placement_udf(operator: Operator) -> Any:
    """Create the UDF that computes an operator and returns placements; never deterministic.

    Raises:
        InputTypeError: The operator is not an instance of an operator class.
    """
    check_is_operator(operator)
    body = partial(_place, operator, HubEnvironment.capture())
    made = make_arrow_udf(body, from_arrow_type(PLACEMENT_TYPE), "model_placement")
    return made.asNondeterministic()


def _place(
    operator: Operator, environment: HubEnvironment, batches: Iterator[Batch]
) -> Iterator[pa.Array]:
    """Like OperatorsBody, for placements."""
    checked = _check_arguments(batches, "model_placement", [operator])
    task = current_task(environment)
    return count_spent(lambda given: place_rows(given, operator, task), checked, None)


def _check_arguments(
    batches: Iterator[Batch],
    function: str,
    operators: Sequence[Operator],
    *,
    is_keyed: bool = False,
) -> Iterator[Batch]:
    """Reject a call with a wrong number of columns, which Spark SQL does not check."""
    reads = dict.fromkeys(name for operator in operators for name in operator.reads)
    takes = [f"{name}s" for name in reads]
    for batch in batches:
        given = (len(batch) if isinstance(batch, tuple) else 1) - is_keyed
        if not 1 <= given <= len(takes):
            raise InputTypeError(
                f"a function of {function} got {given} columns; allowed: {takes[0]}"
                + "".join(f", and optionally {each}" for each in takes[1:])
            )
        yield batch


def operator_udf(
    operator: Operator,
    *,
    with_status: bool = False,
    deterministic: bool = False,
    statuses: "Accumulator[dict[str, int]] | None" = None,
    spent: "Accumulator[dict[str, int]] | None" = None,
    keys: Sequence[str] = (),
) -> Any:
    """Create the UDF that computes one operator.

    Args:
        operator: Any of `OPERATORS`.
        with_status: Return a struct of value, status and error instead of the value.
        deterministic: Allow Spark to move, repeat or merge calls, as with pure functions. If False,
            each row is computed once, and Spark rejects the function in some clauses.
        statuses: Accumulates the number of rows by status when tasks end (classic sessions).
        spent: Accumulates what the tasks spend, by the names of `executor.spending`.
        keys: Names of key values. With keys, the UDF has one more column, of arrays of strings with
            these values, by which an error identifies a row.

    Returns:
        A UDF of one column; for captions, of one or two columns: images and prompts.

    Raises:
        InputTypeError: The operator is not an instance of an operator class.
    """
    check_is_operator(operator)
    body = OperatorsBody(
        (operator,),
        with_status=with_status,
        environment=HubEnvironment.capture(),
        statuses=() if statuses is None else (statuses,),
        spent=spent,
        keys=tuple(keys),
    )
    struct = value_type(operator)
    kind = struct if with_status else struct[0].dataType
    made = make_arrow_udf(body, kind, _function_name([operator]))
    return made if deterministic else made.asNondeterministic()


def images_udf(
    operators: Mapping[str, ImageOperator],
    statuses: "Mapping[str, Accumulator[dict[str, int]] | None]",
    *,
    spent: "Accumulator[dict[str, int]] | None" = None,
    keys: Sequence[str] = (),
) -> Any:
    """Create the UDF that computes several operators per image and decodes each image once.

    Args:
        operators: What to compute, by field name; all of them read images with the same options.
        statuses: For each name, accumulates the number of rows by status, or None.
        spent: As for `operator_udf`.
        keys: As for `operator_udf`.

    Returns:
        A UDF of images, or of images and prompts, that returns a struct of structs.
    """
    counters = tuple(each for name in operators if (each := statuses[name]) is not None)
    body = OperatorsBody(
        tuple(operators.values()),
        tuple(operators),
        True,
        HubEnvironment.capture(),
        counters,
        spent,
        tuple(keys),
    )
    fields = [StructField(name, value_type(operator)) for name, operator in operators.items()]
    made = make_arrow_udf(body, StructType(fields), _function_name([*operators.values()]))
    return made.asNondeterministic()


def value_type(operator: Operator) -> StructType:
    """Return the struct type of a row: its value (the first field), status and error."""
    value, *more = operator.value_fields.items()
    fields = [value, ("status", "string"), ("error", "string"), *more]
    return StructType([StructField(name, _parse_type(kind)) for name, kind in fields])


def _parse_type(kind: str) -> DataType:
    """Parse a type without a session, which pyspark's own parser needs."""
    if kind.startswith("array<"):
        return ArrayType(_parse_type(kind.removeprefix("array<").removesuffix(">")))
    if kind.startswith("struct<"):
        fields = kind.removeprefix("struct<").removesuffix(">").split(", ")
        named = (field.split(": ") for field in fields)
        return StructType([StructField(name, _parse_type(inner)) for name, inner in named])
    named_types: dict[str, DataType] = {
        "binary": BinaryType(),
        "boolean": BooleanType(),
        "float": FloatType(),
        "string": StringType(),
    }
    return named_types[kind]


def _function_name(operators: Sequence[Operator]) -> str:
    """Return the name of a UDF in query plans."""
    names = sorted({operator.function for operator in operators})
    return "_and_".join(names)
