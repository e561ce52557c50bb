"""What kind of session this is: classic or of Spark Connect, local or on a cluster."""

from typing import TYPE_CHECKING

from spark_vision.executor.task import is_local_master

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def is_classic(spark: "SparkSession") -> bool:
    """Return whether a session is in the driver's own process, and not one of Spark Connect."""
    return hasattr(spark, "_jsparkSession")


def is_local() -> bool:
    """Return whether this process runs a session in local mode; False for a Connect client."""
    # A model is described without a session, and without the seconds that pyspark's import takes.
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    return context is not None and is_local_master(str(context.master))
