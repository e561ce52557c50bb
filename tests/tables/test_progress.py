"""Progress is live: rows and failures as tasks end, exact at the end."""

import io
import time
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
from pyspark.sql.types import ArrayType, FloatType
from tqdm import auto, notebook

from spark_vision import write_vision_columns
from spark_vision.spark.arrow_udf import make_arrow_udf
from spark_vision.tables.progress import Progress, Watch, reporting, status_accumulator
from spark_vision.tables.progress_bar import ProgressBar, describe_progress


def test_rows_and_failures_are_counted_as_tasks_end(spark, tmp_path):
    statuses = status_accumulator(spark)
    seen: list[Progress] = []
    first_is_seen = tmp_path / "first task is seen"

    def embed_image(arrays: Iterator[pa.Array]) -> Iterator[pa.Array]:
        for array in arrays:
            statuses.add({"ok": len(array) - 1, "timeout": 1})
            yield pa.array([[1.0]] * len(array), pa.list_(pa.float32()))
        if len(array) > 100:
            ends = time.monotonic() + 60
            while not first_is_seen.exists() and time.monotonic() < ends:
                time.sleep(0.05)

    def report(progress):
        seen.append(progress)
        if progress.done_rows == 10 + 100:
            first_is_seen.touch()

    vectors = ArrayType(FloatType())
    function = make_arrow_udf(embed_image, vectors, "embed_image").asNondeterministic()
    # One task has 100 rows and the other 200, of which one comes beyond what was expected.
    ids = spark.range(0, 400, 1, 2).filter("id < 100 OR id >= 200")
    source = ids.select("id", function("id").alias("v"))
    watch = Watch(309, {"v": statuses}, report)
    with reporting(watch):
        watch.begin(10, 299, ["v"])
        source.write.format("delta").save(str(tmp_path / "table"))

    done = [progress.done_rows for progress in seen]
    assert done == sorted(done)
    assert 110 in done, done
    middle = seen[done.index(110)]
    assert middle.statuses == {"v": {"ok": 99, "timeout": 1}}
    assert middle.rows_per_second > 0
    assert middle.remaining_seconds > 0
    assert sum(statuses.value.values()) == 300
    assert watch.look().done_rows == 309


def test_a_wave_is_as_far_as_the_slowest_of_its_columns(spark):
    first, second = status_accumulator(spark), status_accumulator(spark)
    watch = Watch(50, {"first": first, "second": second})
    watch.begin(0, 20, ["first", "second"])
    first.add({"ok": 20})
    second.add({"ok": 5})
    assert watch.look().done_rows == 5
    watch.begin(20, 30, ["second"])
    second.add({"ok": 10})
    assert watch.look().done_rows == 30


def test_without_counters_a_write_is_as_far_as_its_waves():
    watch = Watch(50, {"first": None})
    watch.begin(20, 30, ["first"])
    assert watch.look().done_rows == 20


def test_the_last_report_of_a_write_is_exact(read_photos, dino, tmp_path):
    seen: list[Progress] = []
    write_vision_columns(
        read_photos(), str(tmp_path / "table"), ["path"], {"v": dino}, progress=seen.append
    )
    assert (seen[-1].done_rows, seen[-1].total_rows) == (7, 7)
    assert seen[-1].statuses == {"v": {"ok": 6, "not_an_image": 1}}


PROGRESS = Progress(
    done_rows=1500,
    total_rows=6000,
    elapsed_seconds=30,
    rows_per_second=50,
    statuses={"embedding": {"ok": 1490, "timeout": 10}},
)


def test_a_line_says_rows_share_rate_time_left_and_failures():
    assert describe_progress(PROGRESS) == (
        "25%, 1,500 of 6,000 rows, 50.00 rows/s, 01:30 left, failed: embedding timeout 10"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_one_bar_in_place():
    stream = Terminal()
    with ProgressBar(stream) as bar:
        bar(PROGRESS)
        bar(PROGRESS)
    shown = stream.getvalue().split("\r")[-1]
    assert shown.rstrip() == f"{describe_progress(PROGRESS)} |##5       |"
    assert shown.endswith("\n")
    assert stream.getvalue().count("\n") == 1


def test_a_notebook_gets_a_bar_as_long_as_its_rows(monkeypatch, capsys):
    monkeypatch.setattr(auto, "tqdm", notebook.tqdm)
    monkeypatch.setattr(auto, "notebook_tqdm", notebook.tqdm)
    with ProgressBar(io.StringIO()) as bar:
        bar(PROGRESS)
        widgets = bar._bar.container.children
        assert (widgets[1].value, widgets[1].max) == (1500, 6000)
        assert widgets[0].value.split() == describe_progress(PROGRESS).split()
        bar(replace(PROGRESS, done_rows=2000, total_rows=8000))
        assert (widgets[1].value, widgets[1].max) == (2000, 8000)


def test_a_log_gets_a_line_now_and_then_and_the_last_one():
    stream = io.StringIO()
    with ProgressBar(stream) as line:
        for _ in range(5):
            line(PROGRESS)
        line(Progress(done_rows=6000, total_rows=6000, elapsed_seconds=120, rows_per_second=50))
    assert stream.getvalue() == "100%, 6,000 of 6,000 rows, 50.00 rows/s, 00:00 left\n"


def test_a_log_gets_no_line_twice():
    stream = io.StringIO()
    end = Progress(done_rows=6000, total_rows=6000, elapsed_seconds=120, rows_per_second=50)
    with ProgressBar(stream) as line:
        line(end)
        line(end)
    assert stream.getvalue() == "100%, 6,000 of 6,000 rows, 50.00 rows/s, 00:00 left\n"


def test_nothing_to_do_is_no_progress():
    stream = io.StringIO()
    with ProgressBar(stream) as line:
        line(Progress(done_rows=0, total_rows=0, elapsed_seconds=1, rows_per_second=0))
    assert not stream.getvalue()


def test_without_counters_the_statuses_are_those_of_committed_waves():
    watch = Watch(50, {"first": None}, committed={"first": {"ok": 19, "timeout": 1}})
    assert watch.look().statuses == {"first": {"ok": 19, "timeout": 1}}
