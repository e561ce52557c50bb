"""Runs a job: its session, a one-line error message and its exit code."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from spark_vision.errors import SparkVisionError
from spark_vision.images.urls import redact_text

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
SILENT = "OFF"
LOG_LEVELS = (SILENT, "ERROR", "WARN", "INFO")

_OURS = re.compile(r"spark_vision\.errors\.(?:\w+): (.+)")
_RAISED = re.compile(r"^(?:\w+\.)*\w+(?:Error|Exception|Interrupt|Exit)\b.*", re.MULTILINE)
_CAUSE = re.compile(r"^Caused by: (.+)", re.MULTILINE)


def run_job(work: "Callable[[SparkSession], None]", log_level: str | None = None) -> int:
    """Run a job in a configured session; a session that already runs is used and not stopped.

    Args:
        work: Called with the session; its exception is reported on stderr, in one line.
        log_level: The JVM's log level. None means the user's setting, or else `OFF`, so that an
            error is one line without Spark's stack traces.

    Returns:
        The exit code: 0; 1 for an error; 130 if the user interrupted it.
    """

    def run() -> None:
        is_shared = _is_running()
        spark = _start_session(log_level)
        try:
            work(spark)
        finally:
            if not is_shared:
                spark.stop()

    return report_errors(run)


def report_errors(work: Callable[[], None]) -> int:
    """Run a job that starts no session by itself; reports errors and returns as `run_job` does."""
    try:
        work()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        print(f"error: {redact_text(one_line_message(error))}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_OK


def one_line_message(error: BaseException) -> str:
    """Return an error's message in one line, without Spark's stack traces.

    For an error that this package raised on an executor, it is the original message.
    """
    text = str(error)
    if isinstance(error, SparkVisionError):
        message = text
    elif ours := _OURS.findall(text):
        message = ours[-1]
    elif "Traceback (most recent call last)" in text and (raised := _RAISED.findall(text)):
        message = raised[-1]
    elif causes := _CAUSE.findall(text):
        message = causes[-1]
    else:
        lines = [line.strip(" :") for line in text.splitlines() if line.strip(" :")]
        is_java = len(lines) > 1 and lines[0].startswith("An error occurred while calling")
        message = lines[1 if is_java else 0] if lines else type(error).__name__
    return " ".join(re.sub(r"\s*SQLSTATE: \w+;?", "", message).split())


def _start_session(log_level: str | None) -> "SparkSession":
    from spark_vision.cli.java import check_java

    starts_jvm = "PYSPARK_GATEWAY_PORT" not in os.environ and "SPARK_REMOTE" not in os.environ
    if starts_jvm:
        check_java()
    from pyspark.sql import SparkSession

    from spark_vision.cli.quiet_start import quiet_start
    from spark_vision.session import configure

    builder = SparkSession.builder
    if log_level is not None:
        builder = builder.config("spark.log.level", log_level)
    builder = configure(builder, log_level=SILENT)
    is_silent = builder._options.get("spark.log.level") == SILENT
    with quiet_start() if starts_jvm and is_silent and sys.stderr else nullcontext():
        return builder.getOrCreate()


def _is_running() -> bool:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    return bool(SparkContext._active_spark_context or SparkSession.getActiveSession())
