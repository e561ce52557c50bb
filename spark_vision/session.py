"""What a Spark session needs for this package: Delta, Arrow, the running interpreter, quiet logs.

A setting that the user made, in the builder, by spark-submit or in `spark-defaults.conf`, is kept;
where it is a list, Delta's entry is appended to it.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyspark import SparkContext
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

from spark_vision.errors import SessionError
from spark_vision.executor.task import is_local_master
from spark_vision.spark.delta_jars import PACKAGES, delta_package, find_delta_jars
from spark_vision.spark.gpu_sizing import gpu_settings

EXTENSIONS = "spark.sql.extensions"
JARS = "spark.jars"
PY_FILES = "spark.submit.pyFiles"
CATALOG = "spark.sql.catalog.spark_catalog"
DELTA_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
DELTA_CATALOG = "org.apache.spark.sql.delta.catalog.DeltaCatalog"

_RUNTIME_SETTINGS = {
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    # Rows that hold images are large: with Spark's own sizes, made for rows of a few numbers, a
    # heap of 1 GB runs out of memory on photographs of 20 KB, and smaller batches are faster.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "256",
    "spark.sql.parquet.columnarReaderBatchSize": "128",
    # Spark 4.2 would keep the rows of a columnar source on the heap, where they cannot spill.
    "spark.sql.execution.arrow.pythonUDF.columnarInput.enabled": "false",
}
_STATIC_SETTINGS = {"spark.ui.showConsoleProgress": "false"}
# On one machine the fifty tasks in which Delta reads a table's log cost seconds at each commit.
_LOCAL_SETTINGS = {"spark.databricks.delta.snapshotPartitions": "2"}


def configure(
    builder: SparkSession.Builder,
    *,
    log_level: str = "WARN",
    gpus_per_executor: int | None = None,
    tasks_per_gpu: int | None = None,
) -> SparkSession.Builder:
    """Add the settings that this package needs to a session builder.

    In a script started by spark-submit, and on a session that is already running, Delta's JARs can
    no longer be added; the first write then reports how to start the session with them. A remote
    server keeps its own settings.

    Args:
        builder: From `SparkSession.builder`, with the user's own settings.
        log_level: The JVM's log level, where the user has set none.
        gpus_per_executor: The number of GPUs that each executor requests.
        tasks_per_gpu: The number of tasks that share one GPU; none: one for each eight cores of the
            GPU, from one to four.

    Returns:
        The same builder.

    Raises:
        SessionError: GPUs are requested where Spark schedules none, or some would stay idle; or
            `--py-files` got a wheel, which Spark keeps from executors.

    Example:
        >>> from pyspark.sql import SparkSession
        >>> spark = configure(SparkSession.builder.master("local[*]")).getOrCreate()
    """
    present = _present_settings(builder)
    wanted = dict(_RUNTIME_SETTINGS)
    if gpus_per_executor is not None:
        _check_schedules_gpus(present)
        for name, value in gpu_settings(present, gpus_per_executor, tasks_per_gpu).items():
            builder.config(name, value)
    if not _is_remote_server(present) and SparkContext._active_spark_context is None:
        _check_py_files(present)
        wanted |= {"spark.log.level": log_level, **_STATIC_SETTINGS}
        wanted |= _delta_settings(present)
        if is_local_master(_master(present)):
            wanted |= _LOCAL_SETTINGS
        if "spark.pyspark.python" not in present:
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    for name, value in wanted.items():
        if name in (EXTENSIONS, JARS, PACKAGES) or name not in present:
            builder.config(name, value)
    return builder


def check_delta(spark: SparkSession) -> None:
    """Check that a session can read and write Delta tables; costs one failed look-up.

    Raises:
        SessionError: Delta's JARs or its settings are missing; the message names them.
    """
    try:
        _ = spark.read.format("delta").load("/spark_vision/no_such_table").schema
    except Exception as error:
        # A missing class is a JVM error in a classic session and a Spark error in a Connect
        # session: only the name of the error condition is the same.
        said = str(error)
        if "DATA_SOURCE_NOT_FOUND" in said:
            package = delta_package() or "io.delta:delta-spark_<spark>_2.13:<version>"
            raise SessionError(
                "Delta's JARs are missing from this Spark session; start it with: "
                f"spark-submit --packages {package}"
            ) from error
        if "DELTA_CONFIGURE_SPARK_SESSION" in said:
            raise SessionError(
                "this Spark session is not configured for Delta; use spark_vision.configure(), or "
                f"start it with: --conf {EXTENSIONS}={DELTA_EXTENSION} --conf "
                f"{CATALOG}={DELTA_CATALOG}"
            ) from error
        # With Delta, a missing table is an AnalysisException.
        if not isinstance(error, AnalysisException):
            raise


def _delta_settings(present: Mapping[str, str]) -> dict[str, str]:
    settings = {EXTENSIONS: _append(present, EXTENSIONS, DELTA_EXTENSION), CATALOG: DELTA_CATALOG}
    if _jvm_is_running():
        return settings if _jvm_has_delta() else {}
    if "delta-spark" in present.get(JARS, "") + present.get(PACKAGES, ""):
        return settings
    if jars := find_delta_jars():
        return settings | {JARS: _append(present, JARS, *jars)}
    package = delta_package()
    if package is None:
        return {}
    return settings | {PACKAGES: _append(present, PACKAGES, package)}


def _append(present: Mapping[str, str], name: str, *added: str) -> str:
    entries = [each.strip() for each in present.get(name, "").split(",") if each.strip()]
    return ",".join(dict.fromkeys([*entries, *added]))


def _is_remote_server(present: Mapping[str, str]) -> bool:
    """A Connect server somewhere else; `local` starts one here, with this builder's settings."""
    return present.get("spark.remote", os.environ.get("SPARK_REMOTE", "")).startswith("sc://")


def _jvm_is_running() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ or SparkContext._gateway is not None


def _jvm_has_delta() -> bool:
    from py4j.protocol import Py4JJavaError

    # JARs of --packages are known to the thread's class loader only.
    loader = _jvm().java.lang.Thread.currentThread().getContextClassLoader()
    try:
        loader.loadClass(DELTA_EXTENSION)
    except Py4JJavaError:
        return False
    return True


def _jvm() -> Any:
    SparkContext._ensure_initialized()
    return SparkContext._jvm


def _check_py_files(present: Mapping[str, str]) -> None:
    """Refuse a wheel, which Spark sends to executors without adding it to their import path."""
    wheels = [each for each in present.get(PY_FILES, "").split(",") if each.endswith(".whl")]
    # YARN's client adds every file that is not a .py.
    if wheels and not _master(present).startswith("yarn"):
        raise SessionError(
            f"--py-files got {wheels[0]}; allowed: .zip, .egg, .jar and .py, since executors "
            "import no other file; a wheel is a zip: copy it to a name that ends with .zip"
        )


def _check_schedules_gpus(present: Mapping[str, str]) -> None:
    if _is_remote_server(present) or SparkContext._active_spark_context is not None:
        raise SessionError(
            "gpus_per_executor: this session and its executors are already running; request GPUs "
            "where the session is started"
        )
    master = _master(present)
    if is_local_master(master):
        raise SessionError(
            f"gpus_per_executor: Spark schedules no GPUs with master {master!r}, and its "
            "jobs would wait forever; leave it out: a GPU of the machine is used without it"
        )


def _master(present: Mapping[str, str]) -> str:
    return present.get("spark.master", "local[*]")


def _present_settings(builder: SparkSession.Builder) -> dict[str, str]:
    """The user's settings: spark-submit's or the defaults file's, overridden by the builder's."""
    if _jvm_is_running():
        pairs = _jvm().org.apache.spark.SparkConf(True).getAll()
        settings = {pair._1(): pair._2() for pair in pairs}
    else:
        settings = _read_defaults_file()
    running = SparkSession.getActiveSession()
    if running is not None:
        settings |= running.conf.getAll
    options: dict[str, Any] = builder._options
    return settings | {name: str(value) for name, value in options.items()}


def _read_defaults_file() -> dict[str, str]:
    """Read what spark-submit will read once it starts the JVM; its own parser is in that JVM."""
    folder = os.environ.get("SPARK_CONF_DIR")
    home = os.environ.get("SPARK_HOME")
    if folder is None and home is not None:
        folder = str(Path(home) / "conf")
    file = Path(folder or Path(sys.modules["pyspark"].__file__ or "").parent / "conf")
    file /= "spark-defaults.conf"
    if not file.is_file():
        return {}
    settings = {}
    for line in file.read_text().splitlines():
        setting = re.match(r"\s*(spark\.[^\s=:]+)[\s=:]+(.*?)\s*$", line)
        if setting:
            settings[setting[1]] = setting[2]
    return settings


if __name__ == "__main__":
    # For a shell: spark-submit --packages "$(python -m spark_vision.session)"
    print(delta_package() or sys.exit("delta-spark is not installed: pip install delta-spark"))
