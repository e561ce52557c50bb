"""Delta's transaction identifiers: a commit that carries one happens once, however often it is run.

Reference: https://docs.delta.io/latest/delta-streaming.html#idempotent-table-writes-in-foreachbatch
"""

from typing import Any, NamedTuple

from py4j.java_gateway import JavaClass
from pyspark.sql import SparkSession

_APPLICATION = "spark.databricks.delta.write.txnAppId"
_VERSION = "spark.databricks.delta.write.txnVersion"


class Transaction(NamedTuple):
    """What a commit is known by.

    Attributes:
        application: Who commits; a stream has one name for as long as it has its checkpoint.
        version: Grows from one transaction of an application to the next.
    """

    application: str
    version: int

    @property
    def settings(self) -> dict[str, str]:
        """Those that let a statement be the transaction's, in a session where nothing else runs."""
        return {_APPLICATION: self.application, _VERSION: str(self.version)}


def is_committed(spark: SparkSession, folder: str, transaction: Transaction) -> bool:
    """Whether a table has a transaction, or a later one of its application.

    Args:
        spark: A classic session that has read the table's state just now.
        folder: The table's.
        transaction: What is asked for.

    Returns:
        False also where Delta's classes go by other names, as on Databricks, and cannot be asked:
        the commit itself is left out there, too.
    """
    jvm: Any = spark._jvm
    delta_log = jvm.org.apache.spark.sql.delta.DeltaLog
    if not isinstance(delta_log, JavaClass):
        return False
    snapshot = delta_log.forTable(spark._jsparkSession, folder).unsafeVolatileSnapshot()
    version = snapshot.transactions().get(transaction.application)
    return bool(version.isDefined()) and int(version.get()) >= transaction.version
