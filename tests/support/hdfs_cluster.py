"""A real HDFS on 127.0.0.1: a name node and a data node, in one JVM, from Hadoop's own JARs."""

import json
import subprocess
from pathlib import Path

import pyspark

from standalone_cluster import wait_for

SPARK_JARS = Path(pyspark.__file__).parent / "jars"
JUNIT = ("org.junit.jupiter", "junit-jupiter-api", "5.13.4")
START_SECONDS = 120


class Hdfs:
    """A name node and a data node; `url` is where they are.

    Args:
        folder: For JARs, blocks and the log.
    """

    def __init__(self, folder):
        self._folder = folder
        folder.mkdir(parents=True)

    def __enter__(self):
        (client,) = SPARK_JARS.glob("hadoop-client-api-*.jar")
        version = client.stem.rpartition("-")[2]
        jars = self._folder / "jars"
        fetch_jars(jars, "org.apache.hadoop", "hadoop-client-minicluster", version, "-notransitive")
        # Hadoop's test classes use its assertions.
        fetch_jars(jars, *JUNIT)
        details, log = self._folder / "details.json", self._folder / "hdfs.log"
        options = ["-format", "-datanodes", "1", "-writeDetails", details]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *("java", "-Xmx256m", "-cp", f"{jars}/*:{SPARK_JARS}/*"),
                    *("org.apache.hadoop.test.MiniDFSClusterManager", *options),
                ],
                cwd=self._folder,
                stdout=output,
                stderr=output,
            )
        try:
            wait_for(lambda: self._is_up(details, log), START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        self.url = f"hdfs://127.0.0.1:{json.loads(details.read_text())['namenode_port']}"
        return self

    def _is_up(self, details, log):
        assert self._process.poll() is None, log.read_text()
        return details.exists() and details.read_text().endswith("}")

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()


def fetch_jars(folder, organisation, module, version, *options):
    """Get a module's JARs from Maven Central, by the Ivy that Spark has."""
    (ivy,) = SPARK_JARS.glob("ivy-*.jar")
    wanted = ["-dependency", organisation, module, version, *options]
    subprocess.run(
        [
            *("java", "-cp", ivy, "org.apache.ivy.Main", *wanted),
            *("-confs", "default", "-retrieve", f"{folder}/[artifact]-[revision].[ext]"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=START_SECONDS,
    )
