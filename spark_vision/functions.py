"""The column functions: a column and an operator give a column of vectors or captions."""

from dataclasses import replace

from pyspark.sql import Column
from pyspark.sql import functions as F

from spark_vision.errors import InputTypeError, InvalidOptionError
from spark_vision.operators import (
    OPERATORS,
    ClipTextEmbedding,
    ImageEmbeddingOperator,
    Operator,
    QwenVLImageUnderstanding,
)
from spark_vision.spark.driver_checks import check_operator_on_driver
from spark_vision.spark.udfs import operator_udf, placement_udf


def embed_image(
    column: Column | str,
    operator: ImageEmbeddingOperator,
    with_status: bool = False,
    deterministic: bool = False,
) -> Column:
    """Embed a column of images.

    Args:
        column: Binary, a `binaryFile` row or Spark's `image` struct; or strings, which
            `operator.image_src_type` says how to read.
        operator: What to compute.
        with_status: Give struct<embedding, status, error>: why a row has no vector.
        deterministic: Let Spark treat it as a pure function; `docs/functions.md` says what each
            choice costs. Without it, Spark computes each row once and pushes no filter below the
            function: filter before you embed.

    Returns:
        array<float> of one length, array<array<float>> with `pooling="tokens"`, or the
        struct.

    Raises:
        InputTypeError: The operator is not for images.
        SparkVisionError: The checkpoint is known here, and is not what the operator needs.
    """
    _check_function("embed_image", operator)
    return _compute([column], operator, with_status, deterministic)


def embed_text(
    column: Column | str,
    operator: ClipTextEmbedding,
    with_status: bool = False,
    deterministic: bool = False,
) -> Column:
    """Embed a column of texts into the space that the operator's checkpoint shares with images.

    A text longer than the model takes is truncated as the checkpoint's tokenizer does. Equal texts
    of a batch are computed once, so that a query's own text costs nothing on every row. Arguments,
    result and errors are those of `embed_image`.
    """
    _check_function("embed_text", operator)
    return _compute([column], operator, with_status, deterministic)


def caption_image(
    image: Column | str,
    operator: QwenVLImageUnderstanding,
    prompt: str | Column | None = None,
    with_status: bool = False,
    deterministic: bool = False,
) -> Column:
    """Write about a column of images.

    Args:
        image: As for `embed_image`.
        operator: What to compute.
        prompt: What is asked of every image; or a column of strings, with a prompt per row, where
            null and blank ones mean `operator.prompt`. None means `operator.prompt` everywhere.
        with_status: Give struct<caption, status, error, truncated>: why a row has no caption, and
            whether one was cut at `operator.max_caption_length`.
        deterministic: As for `embed_image`.

    Returns:
        A string, or the struct. A row without any prompt has the status `bad_prompt`.

    Raises:
        InputTypeError: The operator or the prompt is of another type.
        InvalidOptionError: There is no prompt at all.
        SparkVisionError: The checkpoint is known here, and is not what the operator needs.
    """
    _check_function("caption_image", operator)
    if isinstance(prompt, Column):
        return _compute([image, prompt], operator, with_status, deterministic)
    if prompt is not None and not isinstance(prompt, str):
        raise InputTypeError(
            f"caption_image got a prompt of type {type(prompt).__name__}; allowed: a string, or a "
            "column of strings"
        )
    if prompt is not None and prompt.strip():
        operator = replace(operator, prompt=prompt)
    if operator.requires_prompt:
        raise InvalidOptionError(
            "caption_image got no prompt, and QwenVLImageUnderstanding.prompt is none; allowed: a "
            "text or a column of texts as prompt, or an operator that has one"
        )
    return _compute([image], operator, with_status, deterministic)


def model_placement(
    column: Column | str, operator: Operator, prompt: Column | None = None
) -> Column:
    """Compute a column's rows, and say which process holds the model that computed each.

    `SELECT DISTINCT` over it shows on any cluster what "once per executor" came to.

    Args:
        column: What the operator reads, as for `embed_image`, `embed_text` or `caption_image`.
        operator: What to compute.
        prompt: A column with a prompt per row, for an operator that captions.

    Returns:
        struct<host, executor, device, server_pid, loaded_at, load_seconds, dtype, fingerprint>:
        executor is the process id and start of the executor's JVM, server_pid the process that
        holds the model: the model server, or with `model_sharing="worker"` the Python worker.
        Null for a row that reached no model, as one that is null or no image.

    Raises:
        InputTypeError: The operator is not an operator.
        SparkVisionError: The checkpoint is known here, and is not what the operator needs.
    """
    udf = placement_udf(operator)
    check_operator_on_driver(operator)
    placed: Column = udf(*_named([column] if prompt is None else [column, prompt]))
    return placed


def _compute(
    columns: list[Column | str],
    operator: Operator,
    with_status: bool,
    deterministic: bool,
) -> Column:
    check_operator_on_driver(operator)
    udf = operator_udf(operator, with_status=with_status, deterministic=deterministic)
    computed: Column = udf(*_named(columns))
    return computed


def _named(columns: list[Column | str]) -> list[Column]:
    return [F.col(column) if isinstance(column, str) else column for column in columns]


def _check_function(function: str, operator: Operator) -> None:
    if not isinstance(operator, Operator) or operator.function != function:
        shown = operator.__name__ if isinstance(operator, type) else type(operator).__name__
        allowed = [name for name, each in OPERATORS.items() if each.function == function]
        raise InputTypeError(
            f"{function} got {shown}; allowed: an instance of {', '.join(allowed)}"
        )
