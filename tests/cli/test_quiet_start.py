"""What is written on stderr while Spark starts is held back, and later lines are passed on."""

import subprocess
import sys

import pytest


def run(body):
    """Run a program in which a child, like a JVM, keeps the stderr that it was started with."""
    code = (
        "import os, subprocess, sys\n"
        "from pyspark.errors import PySparkRuntimeError\n"
        "from spark_vision.cli.quiet_start import quiet_start\n"
        "def start(text):\n"
        "    child = subprocess.Popen(['sh', '-c', f'echo \"{text}\" >&2; echo up; read _; echo '\n"
        "        'later >&2'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "    child.stdout.readline()\n"
        "    return child\n"
        "def fail():\n"
        "    raise PySparkRuntimeError(errorClass='JAVA_GATEWAY_EXITED', messageParameters={})\n"
        f"{body}"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_start_is_silent_and_what_comes_later_is_passed_on():
    done = run(
        "import threading\n"
        "with quiet_start():\n"
        "    child = start('WARNING: a banner')\n"
        "sys.stderr.write('ours\\n')\n"
        "child.communicate(b'\\n')\n"
        # The thread that passes lines on ends with the last of those who can write some.
        "for thread in threading.enumerate():\n"
        "    if thread.daemon:\n        thread.join(30)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "ours\nlater\n"


@pytest.mark.parametrize("error", ["fail()", "raise ValueError('no such master')"])
def test_a_failed_start_shows_what_was_written(error):
    done = run(f"with quiet_start():\n    start('Error: bad option').kill()\n    {error}\n")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: bad option\n")
    assert "Traceback" in done.stderr


def test_a_package_that_is_not_found_is_the_error():
    done = run(
        "try:\n"
        "    with quiet_start():\n"
        "        start(':: [unresolved dependency: a#b;1: not found]').kill()\n"
        "        fail()\n"
        "except Exception as error:\n"
        "    print(f'{type(error).__name__}: {error}')\n"
    )
    assert done.stdout == (
        "SessionError: Spark does not start: unresolved dependency: a#b;1: not found\n"
    )
    assert done.stderr == ""
