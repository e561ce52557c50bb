"""The column functions: from a column and an operator to a column of vectors, tags or captions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from pyspark.sql import Column
from pyspark.sql import functions as F

from spark_vision.errors import InputTypeError, InvalidOptionError
from spark_vision.operators import (
    OPERATORS,
    ClipImageEmbedding,
    ClipImageTags,
    ClipOperator,
    ClipTextEmbedding,
    ClipVectorTags,
    ImageEmbeddingOperator,
    Operator,
    QwenVLImageUnderstanding,
    TagOperator,
    reads_images,
)
from spark_vision.spark.driver_checks import check_operator_on_driver
from spark_vision.spark.udfs import operator_udf, placement_udf

_Tagging = TypeVar("_Tagging", bound=TagOperator)


def embed_image(
    col: Column | str,
    operator: ImageEmbeddingOperator,
    *,
    with_status: bool = False,
    deterministic: bool = False,
) -> Column:
    """Embed a column of images.

    Args:
        col: Binary, a `binaryFile` row or Spark's `image` struct; or strings, which are read
            according to `operator.image_src_type`.
        operator: What to compute.
        with_status: Return struct<embedding, status, error>: why a row has no vector.
        deterministic: Let Spark treat the function as deterministic; `docs/functions.md` compares
            the costs. By default Spark computes each row once and pushes no filter below the
            function: filter before you embed.

    Returns:
        array<float> of one length, array<array<float>> with `pooling="tokens"`, or the struct.

    Raises:
        InputTypeError: The operator does not embed images.
        SparkVisionError: The checkpoint is known here and does not suit the operator.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> photos.select("path", embed_image("content", dino).alias("embedding")).show()
    """
    _check_function("embed_image", operator)
    return _compute([col], operator, with_status, deterministic)


def embed_text(
    col: Column | str,
    operator: ClipTextEmbedding,
    *,
    with_status: bool = False,
    deterministic: bool = False,
) -> Column:
    """Embed a column of texts into the space that the operator's checkpoint shares with images.

    A text longer than the model's maximum is truncated by the checkpoint's tokenizer. Equal texts
    in a batch are computed once, so that a constant text costs nothing on every row.

    Args:
        col: Strings; `F.lit("a red circle")` for the same text on every row.
        operator: What to compute.
        with_status: As for `embed_image`.
        deterministic: As for `embed_image`.

    Returns:
        array<float> of one length, or struct<embedding, status, error>.

    Raises:
        InputTypeError: The operator does not embed texts.
        SparkVisionError: The checkpoint is known here and does not suit the operator.

    Example:
        >>> clip = ClipTextEmbedding(model_name="openai/clip-vit-base-patch32")
        >>> queries = spark.createDataFrame([("a red circle",), (None,)], "query string")
        >>> embedded = embed_text("query", clip, with_status=True)
        >>> queries.select("query", embedded.alias("e")).select("query", "e.status").show()
        +------------+----------+
        |       query|    status|
        +------------+----------+
        |a red circle|        ok|
        |        NULL|null_input|
        +------------+----------+
        <BLANKLINE>
    """
    _check_function("embed_text", operator)
    return _compute([col], operator, with_status, deterministic)


def tag_image(
    col: Column | str,
    operator: ClipImageTags | ClipImageEmbedding,
    tags: Sequence[str] | None = None,
    *,
    template: str | None = None,
    top_k: int | None = None,
    with_status: bool = False,
    deterministic: bool = False,
) -> Column:
    """Tag a column of images: zero-shot classification with any list of tags.

    The scores are those of the checkpoint: with CLIP and Chinese-CLIP the softmax over all tags,
    so that they add up to 1; with SigLIP the sigmoid of each tag alone. The tags' own vectors are
    computed once per Python worker.

    Args:
        col: Images, as for `embed_image`.
        operator: What to compute. A `ClipImageEmbedding` needs `tags`.
        tags: The tags to choose from; None means `operator.tags`.
        template: The text for each tag, with `{}` for the tag; None means `operator.template`.
        top_k: The maximum of tags per row; None means `operator.top_k`.
        with_status: Return struct<tags, status, error>: why a row has no tags.
        deterministic: As for `embed_image`.

    Returns:
        array<struct<tag: string, score: float>>, the best tag first, or the struct.

    Raises:
        InputTypeError: The operator's checkpoint does not compare images with texts.
        InvalidOptionError: There are no tags, or a tag, `template` or `top_k` is not allowed; or a
            tag's text is too long for the checkpoint, where it is known here.
        SparkVisionError: The checkpoint is known here and does not suit the operator.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> clip = ClipImageEmbedding(model_name="openai/clip-vit-base-patch32")
        >>> tagged = photos.select(
        ...     "path", tag_image("content", clip, ["circle", "square", "star"]).alias("tags")
        ... )
        >>> tagged.select("path", "tags.tag", F.col("tags")[0].score.alias("best")).show()
    """
    tagging = _add_tags(ClipImageTags, operator, tags, template, top_k)
    return _compute([col], tagging, with_status, deterministic)


def tag_vectors(
    col: Column | str,
    operator: TagOperator | ClipImageEmbedding,
    tags: Sequence[str] | None = None,
    *,
    template: str | None = None,
    top_k: int | None = None,
    with_status: bool = False,
    deterministic: bool = False,
) -> Column:
    """Tag a column of vectors that `embed_image` computed, without reading an image.

    The tags and scores are those of `tag_image` on the same images.

    Args:
        col: array<float> or array<double>: vectors of the operator's checkpoint, normalized or not.
        operator: What to compute. A `ClipImageEmbedding` needs `tags`.
        tags: As for `tag_image`.
        template: As for `tag_image`.
        top_k: As for `tag_image`.
        with_status: As for `tag_image`.
        deterministic: As for `embed_image`.

    Returns:
        As `tag_image`. A null vector has the status `null_input`, and a zero vector or one with NaN
        `nonfinite`. A vector of another dimension fails the job.

    Raises:
        InputTypeError: As `tag_image`.
        InvalidOptionError: As `tag_image`.
        SparkVisionError: As `tag_image`.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> clip = ClipImageEmbedding(model_name="openai/clip-vit-base-patch32")
        >>> vectors = photos.select("path", embed_image("content", clip).alias("embedding"))
        >>> tagged = tag_vectors("embedding", clip, ["circle", "square"], top_k=1)
        >>> vectors.select("path", tagged[0].tag.alias("tag")).show()
    """
    tagging = _add_tags(ClipVectorTags, operator, tags, template, top_k)
    return _compute([col], tagging, with_status, deterministic)


def caption_image(
    col: Column | str,
    operator: QwenVLImageUnderstanding,
    prompt: str | Column | None = None,
    *,
    with_status: bool = False,
    deterministic: bool = False,
) -> Column:
    """Caption a column of images, or answer a question about each.

    Args:
        col: Images, as for `embed_image`.
        operator: What to compute.
        prompt: A string is the prompt itself, not a column's name: `F.col("question")` is a column
            with a prompt per row, where null and blank ones mean `operator.prompt`. None means
            `operator.prompt` on every row.
        with_status: Return struct<caption, status, error, truncated>: why a row has no caption, and
            whether it was cut at `operator.max_caption_length`.
        deterministic: As for `embed_image`.

    Returns:
        A string, or the struct. A row without any prompt has the status `bad_prompt`.

    Raises:
        InputTypeError: The operator or the prompt has another type.
        InvalidOptionError: Neither the call nor the operator has a prompt.
        SparkVisionError: The checkpoint is known here and does not suit the operator.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> qwen = QwenVLImageUnderstanding(
        ...     model_name="Qwen/Qwen2.5-VL-7B-Instruct", max_caption_length=64
        ... )
        >>> answer = caption_image("content", qwen, "How many people are there?")
        >>> photos.limit(1).select("path", answer.alias("answer")).show()
        >>> asked = photos.limit(1).withColumn("question", F.lit("What colour is it?"))
        >>> answer = caption_image("content", qwen, F.col("question"))
        >>> asked.select("path", answer.alias("answer")).show()
    """
    _check_function("caption_image", operator)
    if isinstance(prompt, Column):
        return _compute([col, prompt], operator, with_status, deterministic)
    if prompt is not None and not isinstance(prompt, str):
        raise InputTypeError(
            f"caption_image got a prompt of type {type(prompt).__name__}; allowed: a string, or a "
            "column of strings"
        )
    if prompt is not None and prompt.strip():
        operator = replace(operator, prompt=prompt)
    if operator.requires_prompt:
        raise InvalidOptionError(
            f"caption_image got no prompt, and {type(operator).__name__}.prompt is None; allowed: "
            "a non-empty string or a column of strings as prompt, or an operator that has one"
        )
    return _compute([col], operator, with_status, deterministic)


def model_placement(col: Column | str, operator: Operator, prompt: Column | None = None) -> Column:
    """Compute a column's rows and return which process holds the model that computed each.

    `SELECT DISTINCT` over it shows, on any cluster, how many copies of the model are loaded and
    where.

    Args:
        col: What the operator reads, as for `embed_image`, `embed_text` or `caption_image`.
        operator: What to compute.
        prompt: A column with a prompt per row, for an operator that captions.

    Returns:
        struct<host, executor, device, server_pid, loaded_at, load_seconds, dtype, fingerprint>:
        executor is the process id and start time of the executor's JVM, server_pid the process
        that holds the model: the model server, or with `model_sharing="worker"` the Python worker.
        Null for a row that reached no model, such as one that is null or not an image.

    Raises:
        InputTypeError: The operator is not an operator.
        SparkVisionError: The checkpoint is known here and does not suit the operator.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> placed = photos.select(model_placement("content", dino).alias("p")).select("p.*")
        >>> placed.select("host", "device", "server_pid").distinct().show()
    """
    udf = placement_udf(operator)
    check_operator_on_driver(operator)
    placed: Column = udf(*_to_columns([col] if prompt is None else [col, prompt]))
    return placed


def _compute(
    cols: list[Column | str],
    operator: Operator,
    with_status: bool,
    deterministic: bool,
) -> Column:
    check_operator_on_driver(operator)
    udf = operator_udf(operator, with_status=with_status, deterministic=deterministic)
    computed: Column = udf(*_to_columns(cols))
    return computed


def _add_tags(
    kind: type[_Tagging],
    operator: Operator,
    tags: Sequence[str] | None,
    template: str | None,
    top_k: int | None,
) -> _Tagging:
    is_suitable = isinstance(operator, ClipOperator)
    if not is_suitable or (kind is ClipImageTags and not reads_images(operator)):
        shown = operator.__name__ if isinstance(operator, type) else type(operator).__name__
        allowed = f"{kind.__name__}, {ClipImageEmbedding.__name__}"
        raise InputTypeError(
            f"{kind.function} got {shown}; allowed: an instance of {allowed}, whose checkpoints "
            "compare images with texts"
        )
    given = {"tags": tags, "template": template, "top_k": top_k}
    return operator.convert(kind, **{name: v for name, v in given.items() if v is not None})


def _to_columns(cols: list[Column | str]) -> list[Column]:
    return [F.col(each) if isinstance(each, str) else each for each in cols]


def _check_function(function: str, operator: Operator) -> None:
    if not isinstance(operator, Operator) or operator.function != function:
        shown = operator.__name__ if isinstance(operator, type) else type(operator).__name__
        allowed = [name for name, each in OPERATORS.items() if each.function == function]
        raise InputTypeError(
            f"{function} got {shown}; allowed: an instance of {', '.join(allowed)}"
        )
