"""Kills the parts of a running job, each at each named point, and says what came of it.

By hand: python tests/support/kill_harness.py, and with --stream for a streaming job. A job stops at
the point that is wanted (worker_site/reached_points.py), one of its processes is killed there, and
it is let go on. Killing the driver ends the job, and the next start continues its table; Spark
itself replaces an executor or a worker, and a worker a model server. A table that is complete makes
room for a new one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

JOB = Path(__file__).parent / "killed_job.py"
# Within a MERGE, the model sees the first and a middle batch of a wave, or of a later one.
DRIVER_POINTS = ("before survey", "after survey", "before merge", "after commit")
BATCH_POINTS = ("batch 1", "batch 2", "batch 4")
KINDS = ("driver", "executor", "worker", "server")
JOB_SECONDS = 600
# A master, a worker and an executor with two slots, each a process of its own.
CLUSTER = "local-cluster[1,2,640]"


class Kill(NamedTuple):
    """One kill: what is killed, and the point that the job waits at."""

    kind: str
    point: str


# No image is opened before the first wave, so there is neither a Python worker nor a server then.
PLAN = [
    *(Kill(kind, point) for point in DRIVER_POINTS for kind in ("driver", "executor")),
    *(Kill(kind, point) for point in BATCH_POINTS for kind in KINDS),
    Kill("worker", "after commit"),
    Kill("server", "after commit"),
]


class Job:
    """A job that stops at points, where a part of it is ended as the operating system would.

    With a folder for a stream's checkpoint, the job is a stream.
    """

    def __init__(
        self, photos, table, checkpoint, folder, rows_per_commit, master=CLUSTER, stream=None
    ):
        self.log = folder / "job.log"
        self._points = folder / "points"
        self._points.mkdir(exist_ok=True)
        for left in self._points.iterdir():
            left.unlink()
        self._children = set()
        arguments = [master, photos, table, checkpoint, self.log, self._points, rows_per_commit]
        arguments += [stream] if stream else []
        with (folder / "job.err").open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(JOB), *map(str, arguments)],
                env={**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"},
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        self._deadline = time.monotonic() + JOB_SECONDS

    def want(self, point):
        """Ask the job to wait at a point, once it comes there."""
        (self._points / f"{point}.wanted").touch()

    def stop_at(self, point):
        """Let the job wait at a point; False where it ends before it comes there."""
        self.want(point)
        while self._process.poll() is None:
            assert time.monotonic() < self._deadline, f"{point} is not met"
            if (self._points / f"{point}.reached").exists():
                return True
            time.sleep(0.005)
        return False

    def go_on(self, point):
        """Let the job leave a point."""
        (self._points / f"{point}.reached").unlink()
        (self._points / f"{point}.wanted").unlink()

    def kill(self, kind):
        """Kill a process, for the driver its Python and its JVM."""
        targets = []
        while not targets:
            # A worker may be on its way, such as the one that Spark starts for a second task.
            assert time.monotonic() < self._deadline, f"there is no {kind}"
            targets = self._find(kind)
        for process in targets:
            # Some end by themselves meanwhile.
            with suppress(psutil.NoSuchProcess):
                process.kill()
        while not all(map(_is_dead, targets)):
            assert time.monotonic() < self._deadline, f"{kind} does not end"
            time.sleep(0.005)

    def _find(self, kind):
        me = psutil.Process(self._process.pid)
        below = me.children(recursive=True)
        self._children |= set(below)
        executors = [each for each in below if "CoarseGrainedExecutorBackend" in _command(each)]
        if kind == "driver":
            return [me, *(set(below) - _with_children(executors))]
        if kind == "executor":
            return executors[:1]
        if kind == "server":
            # Its starter may have been killed, and then it is nobody's child.
            owners = [f'"pid": {each.pid},' for each in executors]
            commands = ((each, _command(each)) for each in psutil.process_iter())
            return [
                each
                for each, command in commands
                if "spark_vision.model_server" in command and any(map(command.count, owners))
            ][:1]
        daemons = [each for each in below if "pyspark.worker" in _command(each)]
        return [child for each in daemons for child in _children(each)][:1]

    def wait(self):
        """Wait for the end; the exit code."""
        return self._process.wait(max(1.0, self._deadline - time.monotonic()))

    def end(self):
        """Leave no process behind."""
        if self._process.poll() is None:
            self._children |= _with_children([psutil.Process(self._process.pid)])
        for process in self._children:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


def _command(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _is_dead(process):
    """Whether a process has ended, also where nobody has taken note of it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _children(process):
    try:
        return process.children()
    except psutil.Error:
        return []


def _with_children(processes):
    found = set()
    for process in processes:
        try:
            found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return found


def kill_as_planned(start, plan, on_complete):
    """Run jobs, and kill as planned; a job that has gone on after a kill must end well.

    Args:
        start: Starts a job on the present table.
        plan: What is killed at which points, in turn.
        on_complete: Called when a job has ended by itself; checks the table and makes way.
    """
    job = None
    try:
        for kill, following in zip(plan, [*plan[1:], None], strict=True):
            job = job or start()
            if not job.stop_at(kill.point):
                # The job before this kill came to its end: the next one meets the point.
                assert job.wait() == 0
                on_complete()
                job = start()
                assert job.stop_at(kill.point), f"{kill} is not met"
            job.kill(kill.kind)
            print(f"{kill.kind} killed at {kill.point}", file=sys.stderr, flush=True)
            if kill.kind == "driver":
                job.end()
                job = None
            else:
                job.go_on(kill.point)
                if following is not None:
                    job.want(following.point)
        job = job or start()
        assert job.wait() == 0
        on_complete()
    finally:
        if job is not None:
            job.end()


def rows_of(table):
    """A table's rows without their times."""
    from pyspark.sql import SparkSession

    spark = SparkSession.active()
    return sorted(spark.read.format("delta").load(str(table)).drop("updated_at").collect())


def main():
    """Kill each kind at each point, and say what was hit."""
    import shutil

    from pyspark.sql import SparkSession

    import checkpoints
    from encoded_images import encode, photo
    from quick_spark import quickly
    from spark_vision import ImageViTEmbedding, configure, write_vision_columns

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rows-per-commit", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what is killed")
    parser.add_argument("--stream", action="store_true", help="kill a streaming job")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    photos, table, stream = folder / "photos", folder / "table", folder / "stream"
    photos.mkdir()
    for index in range(arguments.images):
        (photos / f"{index}.jpg").write_bytes(encode(photo(64, 48, seed=index), "JPEG"))
    checkpoints.write_dinov2(folder / "dinov2")
    spark = configure(quickly(SparkSession.builder.master("local[1]"))).getOrCreate()
    write_vision_columns(
        spark.read.format("binaryFile").load(str(photos)),
        str(folder / "undisturbed"),
        ["path"],
        {"embedding": ImageViTEmbedding(model_name=str(folder / "dinov2"))},
    )
    expected = rows_of(folder / "undisturbed")
    tables = []

    def start():
        checkpoint = folder / "dinov2"
        size, kept = arguments.rows_per_commit, stream if arguments.stream else None
        return Job(photos, table, checkpoint, folder, size, stream=kept)

    def on_complete():
        check_rows(rows_of(table), expected)
        tables.append(table)
        shutil.rmtree(table)
        if arguments.stream:
            shutil.rmtree(stream)

    plan = [kill for kill in PLAN if kill.kind in arguments.kinds]
    kill_as_planned(start, plan, on_complete)
    for kill, count in sorted(Counter(plan).items()):
        print(f"{count} x {kill.kind} at {kill.point}")
    print(f"{len(plan)} kills, {len(tables)} tables equal to the undisturbed one", flush=True)
    spark.stop()
    shutil.rmtree(folder)


def check_rows(rows, expected):
    """Each row once, with the values of an undisturbed run."""
    assert [row["path"] for row in rows] == [row["path"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row["embedding_status"] == wanted["embedding_status"]
        assert row["source_hash"] == wanted["source_hash"]
        # Other batches give other last bits.
        differences = map(abs, map(float.__sub__, row["embedding"], wanted["embedding"]))
        assert max(differences) < 1e-5


if __name__ == "__main__":
    main()
