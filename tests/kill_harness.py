"""Kills a running job at random instants, and says which phase each kill hit.

By hand: python tests/kill_harness.py --kills 30, and with --stream for a streaming job. A kill
waits for a phase, then for a random part of a second. Killing the driver ends the job, and the next
start continues its table; Spark itself replaces an executor or a worker. A table that is complete
makes room for a new one.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

JOB = Path(__file__).parent / "killed_job.py"
PHASES = ("survey", "infer", "stage", "commit", "clean")
KINDS = ("driver", "executor", "worker")
LONGEST_WAIT_SECONDS = {"survey": 2.0, "infer": 3.0, "stage": 0.2, "commit": 1.5, "clean": 0.5}
# No photograph is opened in the first survey, so there is no Python worker yet.
PLAN = [
    (kind, phase) for phase in PHASES for kind in KINDS if (kind, phase) != ("worker", "survey")
]
JOB_SECONDS = 600
# A master, a worker and an executor with two slots, each a process of its own.
CLUSTER = "local-cluster[1,2,640]"


@dataclass(frozen=True)
class Kill:
    """One kill: what was killed, and the phase that the log was in when it was."""

    kind: str
    phase: str


class Job:
    """A running job; `kill` ends a part of it, as the operating system would."""

    def __init__(
        self, photos, table, checkpoint, log, rows_per_commit, master=CLUSTER, stream=None
    ):
        log.unlink(missing_ok=True)
        self._log = log
        self._children = set()
        arguments = [master, photos, table, checkpoint, log, rows_per_commit]
        arguments += [stream] if stream else []
        self._process = subprocess.Popen(
            [sys.executable, str(JOB), *map(str, arguments)],
            env={**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"},
            stdout=subprocess.DEVNULL,
            stderr=(log.with_suffix(".err")).open("a"),
            start_new_session=True,
        )
        self._deadline = time.monotonic() + JOB_SECONDS

    def phases(self):
        """The phases so far, from the log."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        found = []
        for line in lines:
            words = line.split(": ")[-1].split() if line.startswith("wave") else line.split()
            found += [word for word in words[:1] if word in PHASES]
        return found

    def wait_for(self, phase, seen):
        """Wait until the phase begins once more; False where the job ends before."""
        while self._process.poll() is None:
            assert time.monotonic() < self._deadline, "the job takes too long"
            if phase in self.phases()[seen:]:
                return True
            time.sleep(0.005)
        return False

    def kill(self, kind):
        """Kill a process, for the driver its Python and its JVM; False where there is none."""
        if self._process.poll() is not None:
            return False
        me = psutil.Process(self._process.pid)
        below = me.children(recursive=True)
        self._children |= set(below)
        executors = [each for each in below if "CoarseGrainedExecutorBackend" in _command(each)]
        targets = {"driver": [me, *(set(below) - _with_children(executors))], "executor": executors}
        workers = [
            child
            for each in below
            if "pyspark.daemon" in _command(each)
            for child in _children(each)
        ]
        killed_count = 0
        for process in targets.get(kind, workers):
            # Some end by themselves meanwhile.
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed_count += 1
                if kind != "driver":
                    break
        return killed_count > 0

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


def kill_at_random(start, plan, seed, on_complete):
    """Run jobs, and kill as planned.

    Args:
        start: Starts the job on the present table.
        plan: (kind, phase) for each kill, in turn.
        seed: Of the waits.
        on_complete: Called when a job has ended by itself; checks the table and makes way.

    Returns:
        The kills, with the phase that each really hit.
    """
    chance, kills, job = random.Random(seed), [], None
    plan, completed_count = list(plan), 0
    try:
        while plan:
            assert completed_count <= len(kills) + 2, f"{plan[0]} is not met; so far {kills}"
            job = job or start()
            kind, phase = plan[0]
            if job.wait_for(phase, len(job.phases())):
                time.sleep(chance.uniform(0, LONGEST_WAIT_SECONDS[phase]))
                if job.kill(kind):
                    hit = job.phases()
                    kills.append(Kill(kind, hit[-1] if hit else "start"))
                    print(f"{kind} killed in {kills[-1].phase}", file=sys.stderr, flush=True)
                    plan.pop(0)
                    if kind == "driver":
                        job.end()
                        job = None
                continue
            assert job.wait() == 0
            on_complete()
            job = None
            completed_count += 1
        job = job or start()
        assert job.wait() == 0
        on_complete()
    finally:
        if job is not None:
            job.end()
    return kills


def rows_of(table):
    """A table's rows without their times."""
    from pyspark.sql import SparkSession

    spark = SparkSession.active()
    return sorted(spark.read.format("delta").load(str(table)).drop("updated_at").collect())


def main():
    """Kill as often as asked, and say what was hit."""
    import shutil

    from pyspark.sql import SparkSession

    import checkpoints
    from encoded_images import encode, photo
    from spark_vision import ImageViTEmbedding, configure, write_vision_columns

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rows-per-commit", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what is killed")
    parser.add_argument("--stream", action="store_true", help="kill a streaming job")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    photos, table, stream = folder / "photos", folder / "table", folder / "stream"
    photos.mkdir()
    for index in range(arguments.images):
        (photos / f"{index}.jpg").write_bytes(encode(photo(64, 48, seed=index), "JPEG"))
    checkpoints.write_dinov2(folder / "dinov2")
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = configure(builder.config("spark.log.level", "OFF")).getOrCreate()
    write_vision_columns(
        spark.read.format("binaryFile").load(str(photos)),
        str(folder / "undisturbed"),
        ["path"],
        {"embedding": ImageViTEmbedding(model_name=str(folder / "dinov2"))},
    )
    expected = rows_of(folder / "undisturbed")
    tables = []

    def start():
        log = folder / "phases.log"
        return Job(
            photos,
            table,
            folder / "dinov2",
            log,
            arguments.rows_per_commit,
            stream=stream if arguments.stream else None,
        )

    def on_complete():
        check_rows(rows_of(table), expected)
        assert not (table / "_spark_vision").exists(), "a stage was left behind"
        tables.append(table)
        shutil.rmtree(table)
        if arguments.stream:
            shutil.rmtree(stream)

    planned = [each for each in PLAN if each[0] in arguments.kinds]
    plan = [planned[index % len(planned)] for index in range(arguments.kills)]
    kills = kill_at_random(start, plan, arguments.seed, on_complete)
    for kill, count in sorted(Counter((kill.kind, kill.phase) for kill in kills).items()):
        print(f"{count} x {' in '.join(kill)}")
    missed = set(PHASES) - {kill.phase for kill in kills}
    print(f"{len(kills)} kills, {len(tables)} tables equal to the undisturbed one", flush=True)
    spark.stop()
    shutil.rmtree(folder)
    sys.exit(f"not hit: {', '.join(sorted(missed))}" if missed else 0)


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
