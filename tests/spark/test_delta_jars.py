"""Delta's JARs are resolved once, into the environment; what fails is said with its cause."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spark_vision.spark.delta_jars import delta_package, find_cause

POM = """<project><modelVersion>4.0.0</modelVersion>
<groupId>{0}</groupId><artifactId>{1}</artifactId><version>{2}</version></project>"""
SETTINGS = """<ivysettings>
<settings defaultResolver="local"/><caches defaultCacheDir="{folder}/cache"/>
<resolvers><filesystem name="local">
<ivy pattern="{folder}/repository/[module]-[revision].pom"/>
<artifact pattern="{folder}/repository/[module]-[revision].[ext]"/>
</filesystem></resolvers></ivysettings>"""


@pytest.fixture
def resolve(tmp_path):
    """Runs the module in an environment whose only repository is a folder of this machine."""
    (tmp_path / "ivysettings.xml").write_text(SETTINGS.format(folder=tmp_path))
    (tmp_path / "spark-defaults.conf").write_text(
        f"spark.jars.ivySettings {tmp_path}/ivysettings.xml\n"
        f"spark.jars.ivy {tmp_path}/ivy\nspark.jars /nowhere/mine.jar\n"
    )
    code = (
        f"import sys; sys.prefix = {str(tmp_path / 'environment')!r}\n"
        "from spark_vision.spark.delta_jars import main; sys.exit(main())"
    )

    def run():
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "SPARK_CONF_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    return run


def test_jars_are_resolved_once_into_the_environment(resolve, tmp_path):
    group, name, version = delta_package().split(":")
    published = tmp_path / "repository"
    published.mkdir()
    (published / f"{name}-{version}.pom").write_text(POM.format(group, name, version))
    (published / f"{name}-{version}.jar").write_bytes(b"a JAR")
    done = resolve()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    (folder,) = (tmp_path / "environment/share/spark-vision/jars").iterdir()
    assert folder.name == f"{name}-{version}"
    (jar,) = folder.iterdir()
    assert jar.read_bytes() == b"a JAR"
    again = resolve()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_a_failed_resolution_prints_its_cause_and_leaves_no_folder(resolve, tmp_path):
    done = resolve()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    name = delta_package().split(":")[1]
    assert line.startswith(f"error: {delta_package()} cannot be resolved: unresolved dependency")
    assert line.count("unresolved dependency") == 1
    assert name in Path(line.rpartition(" ")[2]).read_text()
    assert not list((tmp_path / "environment/share/spark-vision/jars").iterdir())


def test_a_server_that_is_not_reached_is_the_cause():
    said = (
        "\tServer access error at url https://repo1.maven.org/maven2/io/delta/x.pom "
        "(java.net.UnknownHostException: repo1.maven.org)\n"
        'Exception in thread "main" java.lang.RuntimeException: '
        "[unresolved dependency: io.delta#x;1: not found]\n\tat a.b(C.scala:1)\n"
    )
    assert find_cause(said) == (
        "java.net.UnknownHostException: repo1.maven.org; "
        "unresolved dependency: io.delta#x;1: not found"
    )
    assert find_cause("WARNING: Using incubator modules: jdk.incubator.vector\n") is None
