"""Settings under which Spark works through a few rows quickly; none of them changes a result."""

import sys
from pathlib import Path

# For JVMs that live for minutes: what their last compiler's passes take never comes back. Without
# that compiler, the code cache would have 48 MB, and sweeping it would take a fifth of the time.
COMPILER_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"
# Made by shared_classes.py.
CLASSES = Path(sys.prefix) / "share" / "spark-vision" / "test-classes.jsa"
JVM_OPTIONS = COMPILER_OPTIONS
if CLASSES.exists():
    JVM_OPTIONS += f" -XX:SharedArchiveFile={CLASSES}"

SETTINGS = {
    "spark.log.level": "OFF",
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    # Compiling a query takes longer than running it.
    "spark.sql.codegen.wholeStage": "false",
    # Delta reads its log in 50 tasks otherwise, at each commit.
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.executor.extraJavaOptions": JVM_OPTIONS,
}


def quickly(builder):
    """Add the settings to a session's builder."""
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    return builder
