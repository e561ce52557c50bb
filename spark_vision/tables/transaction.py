"""Delta's transaction identifiers: a commit that carries one happens once, even if it is repeated.

Reference: https://docs.delta.io/latest/delta-streaming.html#idempotent-table-writes-in-foreachbatch
"""

from typing import Any, NamedTuple

from py4j.java_gateway import JavaClass
from pyspark.sql import SparkSession

from spark_vision.spark.sessions import is_classic

_APPLICATION = "spark.databricks.delta.write.txnAppId"
_VERSION = "spark.databricks.delta.write.txnVersion"


class Transaction(NamedTuple):
    """The identifier of a commit.

    Attributes:
        application: The writer; a stream has one name for as long as its checkpoint exists.
        version: Grows from one transaction of an application to the next.
    """

    application: str
    version: int

    @property
    def settings(self) -> dict[str, str]:
        """The settings that add it to a statement's commit, in a session that runs nothing else."""
        return {_APPLICATION: self.application, _VERSION: str(self.version)}


def reads_transactions(spark: SparkSession) -> bool:
    """Whether a session can read which transactions a table has.

    Delta's classes cannot be reached in a Connect session, nor on Databricks, where they have other
    names. There, Delta itself skips a commit that is repeated.
    """
    return is_classic(spark) and isinstance(_delta_log(spark), JavaClass)


def is_committed(spark: SparkSession, folder: str, transaction: Transaction) -> bool:
    """Whether a table has a transaction, or a later one of its application.

    Args:
        spark: A session that has just read the table's state.
        folder: The table's folder.
        transaction: The transaction to look for.

    Returns:
        False also where the session cannot read them.
    """
    if not reads_transactions(spark):
        return False
    snapshot = _delta_log(spark).forTable(spark._jsparkSession, folder).unsafeVolatileSnapshot()
    version = snapshot.transactions().get(transaction.application)
    return bool(version.isDefined()) and int(version.get()) >= transaction.version


def _delta_log(spark: SparkSession) -> Any:
    jvm: Any = spark._jvm
    return jvm.org.apache.spark.sql.delta.DeltaLog
