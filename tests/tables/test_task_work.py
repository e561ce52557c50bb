"""A write's result says what its tasks spent, and Spark names its steps."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

import checkpoints
from meeting import WAIT_SECONDS
from spark_vision import TableError, write_vision_columns
from spark_vision.executor.spending import BUSY_PREFIX, BusyTime, count_spent, spend, take_spent
from spark_vision.tables.location import locate_table
from spark_vision.tables.write_result import TaskWork, append_report, work_between


def test_threads_amounts_and_both_waits_are_counted_once():
    take_spent()
    counted = []

    def double(numbers):
        for number in numbers:
            spend(decode_ns=number, model_loads=1)
            yield 2 * number

    assert list(count_spent(double, [3, 4], counted.append)) == [6, 8]
    assert [each.get("decode_ns") for each in counted] == [3, 4, None]
    assert [each.get("model_loads") for each in counted] == [1, 1, None]
    assert ["read_ns" in each for each in counted] == [True, True, True]
    assert ["write_ns" in each for each in counted] == [False, True, True]
    assert take_spent() == {}


def test_work_is_the_difference_of_two_sums_in_seconds():
    idle, first, second = (f"{BUSY_PREFIX}{name}" for name in ("a:1", "a:2", "b:1"))
    before = {"model_ns": 1_000_000_000, "forwards": 2, "forward_rows": 9, "model_loads": 1}
    before |= {idle: 7, first: 500_000_000}
    after = {"model_ns": 3_500_000_000, "forwards": 6, "forward_rows": 19, "model_loads": 1}
    after |= {idle: 7, first: 1_000_000_000, second: 1_000_000_000}
    assert work_between(before, after) == TaskWork(
        read_seconds=0,
        fetch_seconds=0,
        decode_seconds=0,
        waiting_seconds=0,
        model_seconds=2.5,
        busy_seconds=1.5,
        write_seconds=0,
        process_count=2,
        model_loads=0,
        repeated_calls=0,
        rows_per_forward=2.5,
    )


def test_calls_that_overlap_are_busy_time_once(monkeypatch):
    clock = iter([10, 13, 14, 20, 31, 40, 41])
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(clock))
    busy = BusyTime()
    with busy.computing():  # from 10 on
        with busy.computing():  # 13 to 14
            pass
        (name,) = busy.take()  # until 20
    assert name.startswith(BUSY_PREFIX)
    assert list(busy.take().values()) == [11]  # 20 to 31
    assert list(busy.take().values()) == [0]


def test_a_write_says_what_its_tasks_spent(
    spark, photos, read_photos, dino, forwards_folder, tmp_path
):
    # A checkpoint of its own: no earlier test has loaded it.
    model = checkpoints.write_dinov2(tmp_path / "model")
    own = replace(dino, model_name=str(model), batch_size=4)

    def forwards():
        return [line for file in forwards_folder.iterdir() for line in file.read_text().split()]

    before = len(forwards())
    table = str(tmp_path / "table")
    first = write_vision_columns(read_photos(), table, ["path"], {"v": own})
    counts = [int(line) for line in forwards()]
    work = first.work
    assert len(counts) - before == 6 / work.rows_per_forward
    assert (work.model_loads, work.repeated_calls, work.fetch_seconds) == (1, 0, 0)
    assert work.process_count == 1
    assert 0 < first.busy_share == work.busy_seconds / first.elapsed_seconds < 1
    for step in ("read", "decode", "waiting", "model", "busy", "write"):
        assert getattr(work, f"{step}_seconds") > 0, step
    again = write_vision_columns(read_photos(), table, ["path"], {"v": own})
    assert again.work == work_between({}, {})
    assert again.busy_share is None

    assert json.loads(first.to_json()) == {
        **asdict(first),
        "rows_per_second": first.computed_rows / first.elapsed_seconds,
        "busy_share": first.busy_share,
    }

    fetched = write_vision_columns(
        spark.createDataFrame([(str(path),) for path in photos.iterdir()], "content string"),
        str(tmp_path / "fetched"),
        ["content"],
        {"v": replace(own, allow_paths=(str(photos),), model_sharing="worker")},
    )
    assert fetched.statuses == {"v": {"ok": 6, "not_an_image": 1}}
    assert fetched.work.fetch_seconds > 0
    assert fetched.work.decode_seconds > 0
    assert fetched.work.model_seconds > 0
    assert 0 < fetched.work.busy_seconds <= fetched.work.model_seconds
    assert (fetched.work.waiting_seconds, fetched.work.rows_per_forward) == (0, None)


def test_each_run_appends_its_report_to_a_table(spark, read_photos, dino, tmp_path):
    reports = str(tmp_path / "reports")
    options = {"keys": ["path"], "columns": {"v": dino}, "report_table": reports}
    results = [write_vision_columns(read_photos(), str(tmp_path / "table"), **options)]
    # As an earlier version made it, which reported less.
    alter = f"ALTER TABLE delta.`{reports}`"
    spark.sql(f"{alter} SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')")
    spark.sql(f"{alter} DROP COLUMN busy_share")
    results += [write_vision_columns(read_photos(), str(tmp_path / "table"), **options)]
    rows = spark.read.format("delta").load(reports).orderBy("ended_at").collect()
    # The first row of the column that was dropped and added again.
    expected = [json.loads(each.to_json()) for each in results]
    expected[0]["busy_share"] = None
    for row, report in zip(rows, expected, strict=True):
        reported = row.asDict(recursive=True)
        assert abs(reported.pop("ended_at").timestamp() - time.time()) < 600
        assert reported == report


@pytest.mark.slow
def test_two_runs_may_create_their_table_of_reports_at_once(
    spark, read_photos, dino, table, tmp_path, monkeypatch
):
    result = write_vision_columns(read_photos(), table, ["path"], {"v": dino})
    reports = locate_table(spark, str(tmp_path / "reports"))
    together, run_sql = threading.Barrier(2), spark.sql

    def create_together(statement):
        together.wait(WAIT_SECONDS)
        monkeypatch.setattr(spark, "sql", run_sql)
        return run_sql(statement)

    monkeypatch.setattr(spark, "sql", create_together)
    with ThreadPoolExecutor(2) as pool:
        runs = [replace(result, run_id=run_id) for run_id in ("one", "other")]
        list(pool.map(partial(append_report, spark, reports), runs))
    rows = spark.read.format("delta").load(str(tmp_path / "reports")).select("run_id").collect()
    assert sorted(row.run_id for row in rows) == ["one", "other"]


def test_a_report_that_cannot_be_written_leaves_the_result(
    spark, read_photos, dino, tmp_path, caplog
):
    (tmp_path / "reports").write_text("a file")
    result = write_vision_columns(
        read_photos(),
        str(tmp_path / "table"),
        ["path"],
        {"v": dino},
        report_table=str(tmp_path / "reports"),
    )
    assert result.computed_rows == 7
    assert f"cannot append the report of run {result.run_id} to {tmp_path}/reports" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [("a b", "neither a path nor a name"), ("{table}/", "the table to write; allowed: another")],
)
def test_a_report_table_that_is_no_place_is_refused_before_any_row(
    given, message, read_photos, dino, table
):
    report = given.format(table=table)
    with pytest.raises(TableError, match=message):
        write_vision_columns(read_photos(), table, ["path"], {"v": dino}, report_table=report)
    assert not Path(table).exists()


def test_spark_knows_the_steps_of_a_write(spark, read_photos, dino, table):
    spark.sparkContext.setJobDescription("mine")
    write_vision_columns(read_photos(), table, ["path"], {"v": dino}, rows_per_commit=4)
    jobs = spark.sparkContext._jsc.sc().statusStore().jobsList(None)
    named = [jobs.apply(place).description() for place in range(jobs.size())]
    said = [name.get() for name in named if name.isDefined()]
    for step in ("survey for", "wave 1: 4 rows of", "wave 2: 3 rows of", "statuses of"):
        # Delta adds what it does itself before and after.
        assert any(f"spark_vision: {step} {table}" in each for each in said), step
    assert spark.sparkContext.getLocalProperty("spark.job.description") == "mine"
    spark.sparkContext.setLocalProperty("spark.job.description", None)
