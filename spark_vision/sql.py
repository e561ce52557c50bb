"""SQL over operators: any function name for any operator, in a classic or a Connect session."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from spark_vision.errors import InputTypeError, InvalidOptionError
from spark_vision.operators import Operator
from spark_vision.spark.driver_checks import check_operator_on_driver
from spark_vision.spark.udfs import operator_udf, placement_udf

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def register_functions(
    spark: "SparkSession",
    operators: Mapping[str, Operator],
    *,
    with_status: bool = False,
    deterministic: bool = False,
    with_placement: bool = False,
) -> None:
    """Register a temporary SQL function for each operator.

    Args:
        spark: The session in which SQL can call the functions.
        operators: What to compute, by the function's name. A function for captions takes images,
            or images and prompts; null and blank prompts mean the operator's own.
        with_status: Return struct<embedding, status, error> instead of the bare value,
            struct<tags, status, error>, or struct<caption, status, error, truncated>.
        deterministic: As for `embed_image`.
        with_placement: Also register `<name>_placement`, which returns what `model_placement` does.

    Raises:
        InvalidOptionError: The mapping is empty, SQL cannot call one of the names, or two functions
            would have the same name; SQL does not distinguish upper and lower case.
        InputTypeError: Not a mapping, or a value in it is not an operator.
        SparkVisionError: A checkpoint is known here and does not suit its operator.

    Example:
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> register_functions(spark, {"embed_image": dino})
        >>> images = spark.read.format("binaryFile").load("/data/photos")
        >>> images.createOrReplaceTempView("images")
        >>> spark.sql("SELECT size(embed_image(content)) AS dimension FROM images").show()
    """
    if not isinstance(operators, Mapping):
        raise InputTypeError(
            f"register_functions got {type(operators).__name__}; allowed: a mapping of names to "
            'operators, such as {"embed_image": operator}'
        )
    if not operators:
        raise InvalidOptionError(
            "register_functions got no operator; allowed: a mapping with one or more"
        )
    functions = {
        name: operator_udf(operator, with_status=with_status, deterministic=deterministic)
        for name, operator in operators.items()
    }
    named = [*functions.items()]
    if with_placement:
        named += [(f"{name}_placement", placement_udf(each)) for name, each in operators.items()]
    _check_names([name for name, _ in named])
    for operator in operators.values():
        check_operator_on_driver(operator)
    for name, function in named:
        spark.udf.register(name, function)


def _check_names(names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InvalidOptionError(
                f"register_functions got the name {name!r}; allowed: ASCII letters, digits and _"
            )
        if name.lower() in seen:
            raise InvalidOptionError(
                f"register_functions would register {seen[name.lower()]!r} and {name!r}, which are "
                "the same name in SQL; allowed: different names"
            )
        seen[name.lower()] = name
