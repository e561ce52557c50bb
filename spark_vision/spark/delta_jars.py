"""Delta's JARs in the environment's own folder, so that no session resolves them when it starts.

`python -m spark_vision.spark.delta_jars` fills the folder once; `configure` starts sessions with
it. The folder's name has the version of the installed delta-spark: after an upgrade it is another.
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
    """Name the Maven coordinate of Delta's JARs for the installed pyspark and delta-spark.

    Returns:
        Such as `io.delta:delta-spark_4.2_2.13:4.4.0`; None where delta-spark is not installed.
    """
    if find_spec("delta") is None:
        return None
    from delta import configure_spark_with_delta_pip
    from pyspark.sql import SparkSession

    # Delta has changed the scheme of its artifact names: its own code knows which one it follows.
    options: dict[str, Any] = configure_spark_with_delta_pip(SparkSession.Builder())._options
    return str(options[PACKAGES])


def jars_folder(package: str) -> Path:
    """Return where the JARs of a Maven coordinate are in this environment, once resolved."""
    name = package.partition(":")[2].replace(":", "-")
    return Path(sys.prefix) / "share" / "spark-vision" / "jars" / name


def find_delta_jars() -> list[str]:
    """Return the paths of the JARs that fit the installed delta-spark; empty where none are."""
    package = delta_package()
    return [] if package is None else sorted(map(str, jars_folder(package).glob("*.jar")))


def resolve_delta_jars(log: Path) -> Path:
    """Resolve Delta's JARs as Spark does, with the user's own repositories, and keep them.

    Args:
        log: Gets what the resolution prints.

    Returns:
        The folder that holds them.

    Raises:
        SessionError: delta-spark is not installed, or its JARs cannot be resolved.
    """
    package = delta_package()
    if package is None:
        raise SessionError("delta-spark is not installed: pip install delta-spark")
    folder = jars_folder(package)
    folder.parent.mkdir(parents=True, exist_ok=True)
    jars = _resolve(package, log)
    # The folder appears with all of its files, or not at all.
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        whole = Path(partial) / folder.name
        whole.mkdir()
        for jar in jars:
            shutil.copy(jar, whole)
        shutil.rmtree(folder, ignore_errors=True)
        whole.replace(folder)
    return folder


def find_cause(text: str) -> str | None:
    """Find in a launcher's output why its JVM has ended, such as that packages are not found."""
    causes = [cause.search(text) for cause in (_UNREACHED, _NOT_FOUND)]
    found = [cause[1] for cause in causes if cause]
    raised = _RAISED.search(text)
    return "; ".join(found) or (raised[1] if raised else None)


def _resolve(package: str, log: Path) -> list[str]:
    """Let the launcher of a JVM resolve a package; no session is started."""
    from pyspark import SparkConf
    from pyspark.errors import PySparkRuntimeError
    from pyspark.java_gateway import launch_gateway

    # JARs of the user's own defaults are none of Delta's.
    settings = SparkConf(loadDefaults=False).set(PACKAGES, package).set("spark.jars", "")
    launch: Any = launch_gateway  # has no types
    with log.open("wb") as output:
        try:
            gateway = launch(settings, {"stdout": output, "stderr": output})
        except PySparkRuntimeError as error:
            cause = find_cause(log.read_text(errors="replace")) or "the JVM has ended"
            raise SessionError(
                f"{package} cannot be resolved: {cause}; the whole log: {log}"
            ) from error
    jars = gateway.jvm.java.lang.System.getProperty("spark.jars") or ""
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait()
    return [jar.removeprefix("file://") for jar in jars.split(",") if jar]


def main() -> int:
    """Fill the folder, unless it is there; return the exit code."""
    package = delta_package()
    if package is not None and find_delta_jars():
        return 0
    log = Path(sys.prefix) / "share" / "spark-vision" / "delta-jars.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"resolving Delta's JARs, once; log: {log}", flush=True)
    try:
        resolve_delta_jars(log)
    except SessionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
