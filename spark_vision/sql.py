"""SQL over operators: any function name for any operator, in a classic or a Connect session."""

import re
from typing import TYPE_CHECKING

from spark_vision.errors import InvalidOptionError
from spark_vision.operators import Operator
from spark_vision.spark.driver_checks import check_operator_on_driver
from spark_vision.spark.udfs import operator_udf, placement_udf

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def register_functions(
    spark: "SparkSession",
    with_status: bool = False,
    deterministic: bool = False,
    **operators: Operator,
) -> None:
    """Register a temporary SQL function for each operator, and `<name>_placement` beside it.

    Args:
        spark: The session whose SQL shall know the functions.
        with_status: Give struct<embedding, status, error> instead of the bare value, or
            struct<caption, status, error, truncated>.
        deterministic: As for `functions.embed_image`.
        **operators: The functions' names and what they compute. A function for captions takes
            images, or images and prompts; null and blank prompts mean the operator's.

    Raises:
        InvalidOptionError: A name is not one that SQL can call, or none was given.
        InputTypeError: A value is not an operator.
        SparkVisionError: A checkpoint is known here, and is not what its operator needs.

    Example:
        >>> register_functions(spark, embed_image=ImageViTEmbedding(dtype="bfloat16"))
        >>> spark.sql("SELECT path, embed_image(content) FROM images")
    """
    if not operators:
        raise InvalidOptionError(
            "register_functions got no operator; allowed: name=operator, one or more"
        )
    for name in operators:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InvalidOptionError(
                f"register_functions got the name {name!r}; allowed: ASCII letters, digits and _"
            )
    functions = {
        name: operator_udf(operator, with_status=with_status, deterministic=deterministic)
        for name, operator in operators.items()
    }
    for operator in operators.values():
        check_operator_on_driver(operator)
    for name, function in functions.items():
        spark.udf.register(name, function)
        # As `functions.model_placement`: where the model is that computes a row.
        spark.udf.register(f"{name}_placement", placement_udf(operators[name]))
