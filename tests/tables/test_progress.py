"""Progress is live: rows within a running task, failures as tasks end, exact at the end."""

import io

from pyspark.sql import functions as F

from spark_vision import write_vision_columns
from spark_vision.tables.progress import Progress, reporting, status_accumulator
from spark_vision.tables.progress_line import ProgressLine, describe_progress


def test_rows_are_counted_while_their_task_runs_and_failures_when_it_ends(spark, tmp_path):
    statuses = status_accumulator(spark)
    seen: list[Progress] = []

    def embed_image(arrays):
        import time

        import pyarrow as pa

        for array in arrays:
            for start in range(0, len(array), 20):
                part = array.slice(start, 20)
                time.sleep(0.1)
                statuses.add({"ok": len(part) - 1, "timeout": 1})
                vector = pa.array([[1.0] * 1000] * len(part), pa.list_(pa.float32()))
                yield vector

    from collections.abc import Iterator

    import pyarrow as pa

    embed_image.__annotations__ = {"arrays": Iterator[pa.Array], "return": Iterator[pa.Array]}
    function = F.arrow_udf(embed_image, "array<float>").asNondeterministic()
    # One task ends long before the other: 100 rows beside 1,100.
    ids = spark.range(0, 2200, 1, 2).filter("id < 100 OR id >= 1100")
    source = ids.select("id", function("id").alias("v"))
    described_before = spark.sparkContext.getLocalProperty("spark.job.description")
    with reporting(spark, 1200, {"v": statuses}, seen.append) as watch:
        watch.begin(1, 0)
        source.write.format("delta").save(str(tmp_path / "table"))

    assert spark.sparkContext.getLocalProperty("spark.job.description") == described_before
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    # More than the first task's rows, and not those of both: the second one was still running.
    live = [progress for progress in seen if 100 < progress.done < 1200]
    assert live, seen
    assert live[0].statuses == {"v": {"ok": 95, "timeout": 5}}
    assert 0 < live[0].share < 1
    assert live[0].rows_per_second > 0
    assert live[0].seconds_left > 0
    assert sum(statuses.value.values()) == 1200


def test_the_last_report_of_a_write_is_exact(read_photos, dino, tmp_path):
    seen: list[Progress] = []
    write_vision_columns(
        read_photos(), str(tmp_path / "table"), ["path"], {"v": dino}, progress=seen.append
    )
    assert (seen[-1].done, seen[-1].total) == (7, 7)
    assert seen[-1].statuses == {"v": {"ok": 6, "not_an_image": 1}}


PROGRESS = Progress(
    done=1500,
    total=6000,
    seconds=30,
    rows_per_second=50,
    statuses={"embedding": {"ok": 1490, "timeout": 10}},
)


def test_a_line_says_rows_share_rate_time_left_and_failures():
    assert describe_progress(PROGRESS) == (
        "1,500 of 6,000 rows (25%), 50.0 rows/s, 1 min 30 s left, failed: embedding timeout 10"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_one_line_in_place():
    stream = Terminal()
    with ProgressLine(stream) as line:
        line(PROGRESS)
        line(PROGRESS)
    assert stream.getvalue().count("\r") == 2
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")


def test_a_log_gets_a_line_now_and_then_and_the_last_one():
    stream = io.StringIO()
    with ProgressLine(stream) as line:
        for _ in range(5):
            line(PROGRESS)
        line(Progress(done=6000, total=6000, seconds=120, rows_per_second=50))
    assert stream.getvalue() == "6,000 of 6,000 rows (100%), 50.0 rows/s\n"


def test_a_log_gets_no_line_twice():
    stream = io.StringIO()
    end = Progress(done=6000, total=6000, seconds=120, rows_per_second=50)
    with ProgressLine(stream) as line:
        line(end)
        line(end)
    assert stream.getvalue() == "6,000 of 6,000 rows (100%), 50.0 rows/s\n"


def test_nothing_to_do_is_no_progress():
    stream = io.StringIO()
    with ProgressLine(stream) as line:
        line(Progress(done=0, total=0, seconds=1, rows_per_second=0))
    assert not stream.getvalue()
