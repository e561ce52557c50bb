"""Checks for a Java that is new enough for Spark, before Spark is started.

Only the standard library and the package's errors are imported, so that
`python -m spark_vision.cli.java` works before anything is installed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from spark_vision.errors import SessionError

MINIMUM_JAVA = 17
ANSWER_SECONDS = 30

_HOW_TO_GET_IT = (
    "install one (Debian, Ubuntu: apt-get install openjdk-17-jre-headless; macOS: brew install "
    "openjdk@17; others: https://adoptium.net) and put it on PATH or set JAVA_HOME"
)


def check_java() -> None:
    """Check the version of the Java that Spark will start.

    Raises:
        SessionError: Java is missing, or too old for Spark.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if java is None or not os.access(java, os.X_OK):
        place = f"JAVA_HOME={home}" if home else "PATH"
        raise SessionError(
            f"no Java in {place}; Spark needs Java {MINIMUM_JAVA} or newer: {_HOW_TO_GET_IT}"
        )
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SessionError(f"{java} does not run: {error}; {_HOW_TO_GET_IT}") from error
    # Java 8 and older report 1.x, with the major version second.
    version = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    if version is None:
        raise SessionError(f"{java} -version reports no version; {_HOW_TO_GET_IT}")
    if int(version[1]) < MINIMUM_JAVA:
        raise SessionError(
            f"{java} is Java {version[1]}; Spark needs Java {MINIMUM_JAVA} or newer: "
            f"{_HOW_TO_GET_IT}"
        )


if __name__ == "__main__":
    try:
        check_java()
    except SessionError as error:
        sys.exit(str(error))
