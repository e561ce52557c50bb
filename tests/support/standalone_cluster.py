"""A real standalone cluster on 127.0.0.1: a Master, Workers, and drivers in their own processes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import pyspark

import quick_spark
from conftest import WORKER_SITE

SPARK_HOME = Path(pyspark.__file__).parent
ROOT = Path(__file__).parents[2]
CORES_PER_WORKER = 2
DRIVER_SETTINGS = {
    **quick_spark.SETTINGS,
    "spark.executor.cores": str(CORES_PER_WORKER),
    "spark.executor.memory": "512m",
    "spark.driver.memory": "512m",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    # Work begins when all executors are there, of both Workers: the ratio is of these cores.
    "spark.cores.max": str(2 * CORES_PER_WORKER),
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    "spark.scheduler.maxRegisteredResourcesWaitingTime": "120s",
    "spark.python.daemon.module": "warm_daemon",
}


class Cluster:
    """A Master and Workers of two cores each, from the classes of the pip package.

    Args:
        folder: For logs, executors and the discovery script.
        gpus_per_worker: How many GPUs the script of each Worker announces.
        users: The id of the user that each Worker, and what it starts, runs as; None: this one.
    """

    def __init__(self, folder, gpus_per_worker=2, users=(None, None)):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        addresses = ", ".join(f'"{number}"' for number in range(gpus_per_worker))
        script = folder / "discover"
        script.write_text(f'#!/bin/sh\necho \'{{"name": "gpu", "addresses": [{addresses}]}}\'\n')
        script.chmod(0o755)
        self._options = (
            f"-Dspark.worker.resource.gpu.amount={gpus_per_worker} "
            f"-Dspark.worker.resource.gpu.discoveryScript={script}"
        )
        self._processes = []
        self._users = users

    def __enter__(self):
        try:
            log = self._start("master.Master", "--port", "0", "--webui-port", "0")
            self.url = wait_for(lambda: re.search(r"spark://127.0.0.1:\d+", log.read_text()), 120)[
                0
            ]
            for number, user in enumerate(self._users):
                self._add_worker(number, user)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _add_worker(self, number, user):
        work = self._folder / f"work-{number}"
        work.mkdir()
        if user is not None:
            os.chown(work, user, -1)
        options = ["--cores", str(CORES_PER_WORKER), "--memory", "1g", "--work-dir", str(work)]
        arguments = ("--webui-port", "0", *options, self.url)
        log = self._start("worker.Worker", *arguments, name=number, user=user)
        wait_for(lambda: "Successfully registered" in log.read_text(), 120)

    def _start(self, java_class, *arguments, name="", user=None):
        log = self._folder / f"{java_class}{name}.log"
        environment = {
            **os.environ,
            # What executors import comes from their own settings.
            "PYTHONPATH": "",
            "SPARK_HOME": str(SPARK_HOME),
            "SPARK_WORKER_OPTS": self._options,
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
        command = [SPARK_HOME / "bin" / "spark-class", f"org.apache.spark.deploy.{java_class}"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", *arguments],
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                user=user,
            )
        self._processes.append(process)
        return log

    def __exit__(self, *_):
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Driver:
    """A process with a Spark session on the cluster, in which functions of `cluster_jobs` run.

    Args:
        cluster: Where its executors run.
        folder: For its model servers' logs and what the workers write down.
        settings: Over those that every driver has.
        package_on_path: Whether workers find the package on their PYTHONPATH.
    """

    def __init__(self, cluster, folder, settings=None, package_on_path=True):
        self.folder = folder
        for name in ("tmp", "forwards", "loads"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        path = [str(WORKER_SITE), str(ROOT)] if package_on_path else [str(WORKER_SITE)]
        environment = {
            "PYTHONPATH": os.pathsep.join(path),
            "COUNTED_FORWARDS": str(folder / "forwards"),
            "RECORDED_LOADS": str(folder / "loads"),
            "TMPDIR": str(folder / "tmp"),
            "OMP_NUM_THREADS": "1",
        }
        self._settings = {
            **DRIVER_SETTINGS,
            "spark.master": cluster.url,
            "spark.pyspark.python": sys.executable,
            **{f"spark.executorEnv.{name}": value for name, value in environment.items()},
            **(settings or {}),
        }
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))

    def __enter__(self):
        from cluster_jobs import start

        try:
            self.run(start, self._settings)
        except BaseException:
            self._kill()
            raise
        return self

    def submit(self, function, *arguments):
        """Run a function in the driver; give its future."""
        from cluster_jobs import call

        return self._pool.submit(call, function, *arguments)

    def run(self, function, *arguments, timeout=300):
        """Run a function in the driver and return its result."""
        return self.submit(function, *arguments).result(timeout)

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """End the session and its process, once."""
        from cluster_jobs import stop

        if self._pool is not None:
            try:
                self.submit(stop).result(timeout=60)
            finally:
                self._kill()

    def _kill(self):
        # A driver that hangs would keep this process from its end; its JVM ends with it.
        for process in list(self._pool._processes.values()):
            process.kill()
        self._pool.shutdown()
        self._pool = None

    def loads(self):
        """What the processes that loaded a model wrote down."""
        files = sorted((self.folder / "loads").iterdir())
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def servers(self):
        """The model servers of this driver's executors that run: process by id."""
        found = {}
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            is_server = "spark_vision.model_server" in words
            is_ours = any(str(self.folder) in word for word in words)
            if is_server and is_ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
        return found

    def workers(self):
        """The Python workers of this driver's executors, and apart from them their daemons."""
        python = [
            process
            for process in psutil.process_iter(["cmdline", "environ"])
            if "pyspark.worker" in (process.info["cmdline"] or [])
            and (process.info["environ"] or {}).get("TMPDIR") == str(self.folder / "tmp")
        ]
        daemons = [process for process in python if process.parent().name() == "java"]
        ids = {process.pid for process in daemons}
        return [process for process in python if process.ppid() in ids], daemons

    def wait_for_forwards(self):
        """Wait until models have begun to compute more batches than now."""
        folder = self.folder / "forwards"

        def count():
            return sum(len(file.read_text().split()) for file in folder.iterdir())

        before = count()
        wait_for(lambda: count() >= before + 2, 120)

    def remains(self):
        """What is left of the servers' files."""
        return [str(path) for path in (self.folder / "tmp").glob("spark-vision-*")]


def wait_for(look, seconds):
    """Return what `look` finds, once it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found
