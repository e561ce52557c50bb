"""Keeps Delta's JARs in a folder of the Python environment, so that sessions do not resolve them.

`python -m spark_vision.spark.delta_jars` fills the folder once, and `configure` uses it. The folder
name includes the version of the installed delta-spark, so an upgrade uses a new folder.
"""

import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spark_vision.errors import SessionError

PACKAGES = "spark.jars.packages"

_UNREACHED = re.compile(r"Server access error.*?\((.+)\)")
_NOT_FOUND = re.compile(r"\[(unresolved dependency: [^\]]+|download failed: [^\]]+)\]")
_RAISED = re.compile(r"^Exception in thread \S+ (.+)", re.MULTILINE)


def delta_package() -> str | None:
    """Return the Maven coordinate of Delta's JARs for the installed pyspark and delta-spark.

    Returns:
        Such as `io.delta:delta-spark_4.2_2.13:4.4.0`; None if delta-spark is not installed.
    """
    if find_spec("delta") is None:
        return None
    from delta import configure_spark_with_delta_pip
    from pyspark.sql import SparkSession

    # The naming scheme of Delta's artifacts has changed: its own code knows the current one.
    options: dict[str, Any] = configure_spark_with_delta_pip(SparkSession.Builder())._options
    return str(options[PACKAGES])


def jars_folder(package: str) -> Path:
    """Return the folder for the JARs of a Maven coordinate in this environment."""
    name = package.partition(":")[2].replace(":", "-")
    return Path(sys.prefix) / "share" / "spark-vision" / "jars" / name


def find_delta_jars() -> list[str]:
    """Return the paths of the resolved JARs for the installed delta-spark; may be empty."""
    package = delta_package()
    return [] if package is None else sorted(map(str, jars_folder(package).glob("*.jar")))


def resolve_delta_jars(log: Path) -> Path:
    """Resolve Delta's JARs as Spark does, with the user's own repositories, and keep them.

    Args:
        log: The file for the output of the resolution.

    Returns:
        The folder with the JARs.

    Raises:
        SessionError: delta-spark is not installed, or its JARs cannot be resolved.
    """
    package = delta_package()
    if package is None:
        raise SessionError("delta-spark is not installed: pip install delta-spark")
    folder = jars_folder(package)
    folder.parent.mkdir(parents=True, exist_ok=True)
    jars = _resolve(package, log)
    # The folder is created atomically, with all its files.
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        whole = Path(partial) / folder.name
        whole.mkdir()
        for jar in jars:
            shutil.copy(jar, whole)
        shutil.rmtree(folder, ignore_errors=True)
        whole.replace(folder)
    return folder


def find_cause(text: str) -> str | None:
    """Find the cause in the output of a JVM that exited, such as packages that are not found."""
    causes = [cause.search(text) for cause in (_UNREACHED, _NOT_FOUND)]
    found = [cause[1] for cause in causes if cause]
    raised = _RAISED.search(text)
    return "; ".join(found) or (raised[1] if raised else None)


def _resolve(package: str, log: Path) -> list[str]:
    """Resolve a package by launching a JVM, without starting a session."""
    from pyspark import SparkConf
    from pyspark.errors import PySparkRuntimeError
    from pyspark.java_gateway import launch_gateway

    # Do not include the JARs of the user's own defaults.
    settings = SparkConf(loadDefaults=False).set(PACKAGES, package).set("spark.jars", "")
    launch: Any = launch_gateway  # has no types
    with log.open("wb") as output:
        try:
            gateway = launch(settings, {"stdout": output, "stderr": output})
        except PySparkRuntimeError as error:
            cause = find_cause(log.read_text(errors="replace")) or "the JVM exited"
            raise SessionError(f"{package} cannot be resolved: {cause}; log: {log}") from error
    jars = gateway.jvm.java.lang.System.getProperty("spark.jars") or ""
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait()
    return [jar.removeprefix("file://") for jar in jars.split(",") if jar]


def main() -> int:
    """Fill the folder if it is missing; return the exit code."""
    package = delta_package()
    if package is not None and find_delta_jars():
        return 0
    log = Path(sys.prefix) / "share" / "spark-vision" / "delta-jars.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"resolving Delta's JARs (only once); log: {log}", flush=True)
    try:
        resolve_delta_jars(log)
    except SessionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
