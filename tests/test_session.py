"""Sessions: what `configure` sets and leaves, and what is said when Java is missing."""

import json
import os
import subprocess
import sys

import pytest

from spark_vision import session

DELTA = "io.delta.sql.DeltaSparkSessionExtension"


def configured(statement="SparkSession.builder", prefix="/nowhere", **environment):
    """The settings that a fresh process, which has no JVM, would start its session with.

    With `prefix` for its environment; that of a plain pip install has no folder of JARs.
    """
    code = (
        f"import json, os, sys; sys.prefix = {str(prefix)!r}\n"
        "from pyspark.sql import SparkSession\n"
        "from spark_vision import configure\n"
        f"builder = configure({statement})\n"
        "print(json.dumps([builder._options, os.environ.get('PYSPARK_PYTHON')]))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYSPARK")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def test_a_plain_session_gets_delta_of_the_installed_pair_and_the_running_interpreter():
    options, interpreter = configured()
    import delta
    import pyspark

    version = ".".join(pyspark.__version__.split(".")[:2])
    package = options["spark.jars.packages"]
    assert package.startswith(("io.delta:delta-spark_" + version, "io.delta:delta-spark_2.13"))
    assert package == session.delta_package()
    assert options["spark.sql.extensions"] == DELTA
    assert options["spark.ui.showConsoleProgress"] == "false"
    assert interpreter == sys.executable
    assert delta


def test_the_builders_own_settings_stand_and_its_lists_grow():
    options, interpreter = configured(
        "SparkSession.builder"
        ".config('spark.sql.extensions', 'com.example.Mine')"
        ".config('spark.jars.packages', 'com.example:mine:1')"
        ".config('spark.log.level', 'INFO')"
        ".config('spark.executor.heartbeatInterval', '7s')",
        PYSPARK_PYTHON="/usr/bin/other",
    )
    assert options["spark.sql.extensions"] == f"com.example.Mine,{DELTA}"
    assert options["spark.jars.packages"].startswith("com.example:mine:1,io.delta:")
    assert options["spark.log.level"] == "INFO"
    assert options["spark.executor.heartbeatInterval"] == "7s"
    assert interpreter == "/usr/bin/other"


def test_gpus_are_asked_for_on_a_cluster_and_refused_in_local_mode():
    cluster = "SparkSession.builder.master('spark://host:7077').config('spark.executor.cores', 8)"
    options, _ = configured(f"{cluster}, gpus_per_executor=2, tasks_per_gpu=2")
    assert options["spark.executor.resource.gpu.amount"] == "2"
    assert options["spark.task.resource.gpu.amount"] == "0.5"
    assert options["spark.task.cpus"] == "2"
    for master in ("", ".master('local[8]')"):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            configured(f"SparkSession.builder{master}, gpus_per_executor=1")
        assert "schedules no GPUs" in failed.value.stderr


def test_a_wheel_in_py_files_is_refused_where_executors_would_not_import_it():
    sent = ".config('spark.submit.pyFiles', '/dist/a.py,/dist/spark_vision-0.1.0.whl')"
    configured(f"SparkSession.builder.master('yarn'){sent}")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        configured(f"SparkSession.builder.master('spark://host:7077'){sent}")
    assert "--py-files got /dist/spark_vision-0.1.0.whl" in failed.value.stderr
    assert "copy it to a name that ends with .zip" in failed.value.stderr


def test_the_defaults_file_stands_and_its_lists_grow(tmp_path):
    (tmp_path / "spark-defaults.conf").write_text(
        "# ours\nspark.sql.extensions   com.example.Mine\nspark.log.level=ERROR\n"
    )
    options, _ = configured(SPARK_CONF_DIR=str(tmp_path))
    assert options["spark.sql.extensions"] == f"com.example.Mine,{DELTA}"
    assert "spark.log.level" not in options


def test_a_delta_package_that_the_user_chose_is_not_added_again():
    options, _ = configured(
        "SparkSession.builder.config('spark.jars.packages', 'io.delta:delta-spark_2.13:4.0.0')"
    )
    assert options["spark.jars.packages"] == "io.delta:delta-spark_2.13:4.0.0"
    assert options["spark.sql.extensions"] == DELTA


@pytest.fixture
def prefix(tmp_path):
    """An environment that has the JARs of the installed delta-spark, and of another one."""
    name = session.delta_package().partition(":")[2].replace(":", "-")
    for folder in (name, "delta-spark_4.0_2.13-4.0.0"):
        jars = tmp_path / "share" / "spark-vision" / "jars" / folder
        jars.mkdir(parents=True)
        for jar in ("storage.jar", "delta-spark.jar"):
            (jars / jar).touch()
    return tmp_path


def test_an_environment_with_deltas_jars_resolves_nothing(prefix):
    options, _ = configured("SparkSession.builder.config('spark.jars', '/mine.jar')", prefix)
    mine, *jars = options["spark.jars"].split(",")
    assert mine == "/mine.jar"
    name = session.delta_package().partition(":")[2].replace(":", "-")
    folder = f"{prefix}/share/spark-vision/jars/{name}"
    assert jars == [f"{folder}/delta-spark.jar", f"{folder}/storage.jar"]
    assert "spark.jars.packages" not in options
    assert options["spark.sql.extensions"] == DELTA


def test_a_delta_package_of_the_user_goes_before_the_environments_jars(prefix):
    chosen = "io.delta:delta-spark_2.13:4.0.0"
    options, _ = configured(
        f"SparkSession.builder.config('spark.jars.packages', '{chosen}')", prefix
    )
    assert options["spark.jars.packages"] == chosen
    assert "spark.jars" not in options


def test_a_remote_servers_settings_are_left_alone():
    options, interpreter = configured("SparkSession.builder.remote('sc://127.0.0.1:1')")
    assert "spark.jars.packages" not in options
    assert "spark.sql.extensions" not in options
    assert options["spark.sql.execution.arrow.pyspark.enabled"] == "true"
    assert interpreter is None


def test_a_session_that_runs_is_given_back_and_its_static_settings_stay(spark):
    before = spark.conf.get("spark.sql.extensions")
    again = session.configure(type(spark).builder).getOrCreate()
    assert again.sparkContext is spark.sparkContext
    assert spark.conf.get("spark.sql.extensions") == before


def test_what_was_set_on_a_running_session_stands(spark):
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(name)
    spark.conf.set(name, "1000")
    try:
        again = session.configure(type(spark).builder).getOrCreate()
        assert again.conf.get(name) == "1000"
    finally:
        spark.conf.set(name, before)


def test_a_configured_session_knows_delta_and_its_workers_run_this_interpreter(spark):
    session.check_delta(spark)
    assert spark.sparkContext.parallelize([0], 1).map(lambda _: sys.executable).first() == (
        sys.executable
    )


def run_java_check(**environment):
    return subprocess.run(
        [sys.executable, "-m", "spark_vision.cli.java"],
        env={"PATH": "/nowhere", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_missing_java_is_said_in_one_line_with_the_way_to_get_it():
    done = run_java_check()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "17" in done.stderr
    assert "openjdk-17" in done.stderr


@pytest.mark.parametrize(
    ("said", "major"),
    [('java version "1.8.0_302"', "Java 8"), ('openjdk version "11.0.2" 2019-01-15', "Java 11")],
)
def test_old_java_is_said_in_one_line(tmp_path, said, major):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho '{said}' >&2\n")
    java.chmod(0o755)
    done = run_java_check(JAVA_HOME=str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert major in done.stderr


def test_new_java_passes(tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"21.0.1\" 2023-10-17' >&2\n")
    java.chmod(0o755)
    assert run_java_check(JAVA_HOME=str(tmp_path)).returncode == 0
