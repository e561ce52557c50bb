"""Over Spark Connect a table is written as by a classic session: one process, step by step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SECONDS = 550
ALL = {"ok": 6, "not_an_image": 1}

# The first test waits for all steps.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 50)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory, checkpoints):
    """What each step of `connected_writes` saw."""
    folder = tmp_path_factory.mktemp("connected")
    environment = {name: value for name, value in os.environ.items() if "PYSPARK" not in name}
    path = [str(TESTS), environment.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            sys.executable,
            str(TESTS / "support" / "connected_writes.py"),
            str(folder),
            str(checkpoints / "dinov2"),
            str(TESTS / "support" / "worker_site"),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**environment, "PYTHONPATH": os.pathsep.join(path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


def of(step, *names):
    return {name: step[name] for name in names}


def test_the_session_is_of_connect(seen):
    assert seen["is_of_connect"]


def test_a_dry_run_counts_what_a_first_write_would_do(seen):
    assert (
        seen["plan"].items()
        >= {
            "is_new": True,
            "source_rows": 7,
            "reasons": {"embedding": {"new": 7}},
            "pending_rows": 7,
            "wave_count": 3,
            "missing_rows": 0,
            "was_made": False,
        }.items()
    )
    assert seen["plan"]["source_bytes"] > 0


def test_a_first_write_computes_each_row_once_in_waves(seen):
    first = seen["first_write"]
    assert first["history"] == ["CREATE TABLE", "MERGE", "MERGE", "MERGE"]
    labels = [json.loads(said)["spark_vision"] for said in first["labels"]]
    assert [label["run"] for label in labels] == [first["run_id"]] * 4
    assert [label.get("wave") for label in labels] == [None, 1, 2, 3]
    expected = {
        "source_rows": 7,
        "existing_rows": 0,
        "computed_rows": 7,
        "remaining_rows": 0,
        "forwards": 6,
    }
    assert of(first, *expected) == expected
    assert first["statuses"] == {"embedding": ALL}
    images = [f"{number}.jpg" for number in range(6)]
    assert first["dimensions"] == {**dict.fromkeys(images, 48), "text.jpg": None}
    assert {name for name, error in first["errors"].items() if error} == {"text.jpg"}
    assert first["lengths"]["text.jpg"] == len("not an image")


def test_thumbnails_are_made_over_connect_too(seen):
    assert seen["thumbnails"] == {"image_count": 6, "failed_count": 1, "html": 6}


def test_progress_is_told_wave_by_wave_and_exact_at_the_end(seen):
    assert seen["first_write"]["progress"] == [[0, 7], [3, 7], [6, 7], [7, 7]]
    assert seen["first_write"]["last_statuses"] == {"embedding": ALL}
    assert seen["same_again"]["progress"] == [[0, 0]]
    assert seen["second_column"]["progress"][-1] == [7, 7]


def test_a_run_with_nothing_to_do_computes_and_writes_nothing(seen):
    again = seen["same_again"]
    assert of(again, "existing_rows", "computed_rows", "forwards", "has_commits", "statuses") == {
        "existing_rows": 7, "computed_rows": 0, "forwards": 0, "has_commits": False,
        "statuses": {"embedding": {}},
    }  # fmt: skip


def test_a_changed_image_alone_is_computed_again(seen):
    assert of(seen["changed_row"], "computed_rows", "forwards", "changed") == {
        "computed_rows": 1, "forwards": 1, "changed": ["1.jpg"],
    }  # fmt: skip


def test_failed_rows_are_tried_again_by_their_status(seen):
    other, own = seen["retry"]
    assert (other["computed_rows"], own["computed_rows"]) == (0, 1)
    assert own["statuses"] == {"embedding": {"not_an_image": 1}}


def test_a_stream_computes_each_row_once_in_the_servers_process(seen):
    first = {f"{number}.jpg": "ok" for number in range(6)} | {"text.jpg": "not_an_image"}
    assert seen["stream"] == {
        "seen": [first, first | {"of_the_second_run.jpg": "ok"}],
        "forwards": 6 + 1,
    }


def test_a_connect_session_does_not_know_what_its_tasks_spent(seen):
    assert seen["first_write"]["work"] is None


def test_a_second_column_is_filled_in_without_computing_the_first(seen):
    second = seen["second_column"]
    assert second["planned"] == {"embedding": {}, "other": {"not filled in": 7}}
    assert second["statuses"] == {"embedding": {}, "other": ALL}
    assert of(second, "computed_rows", "forwards", "are_same", "are_kept") == {
        "computed_rows": 7, "forwards": 6, "are_same": True, "are_kept": True,
    }  # fmt: skip


def test_two_writers_at_once_write_no_key_twice(seen):
    both = seen["two_writers"]
    assert both["computed"] == [1, 1]
    assert "conflict with another writer" in both["log"]
    numbered = [f"{number}.jpg" for number in range(6)]
    assert both["names"] == sorted([*numbered, "text.jpg", "one.jpg", "other.jpg"])


def test_rows_that_the_source_has_no_more_are_removed_where_that_is_asked_for(seen):
    step = seen["delete_missing"]
    assert (step["kept"]["deleted_rows"], step["deleted"]["deleted_rows"]) == (0, 1)
    assert step["rows"] == sorted(set(seen["two_writers"]["names"]) - {"2.jpg"})


def test_a_filtered_source_is_known_by_its_plan(seen):
    step = seen["filtered_source"]
    assert "is filtered, limited or sampled; 7 rows of" in step["log"]
    assert step["log"].count("delete_missing: the source") == 1
    assert step["narrowed"] == [True] * 4
    assert step["whole"] == [False] * 3
    assert step["knows_files"]
    assert not step["knows_files_of_two"]


def test_a_source_of_two_sides_is_written_in_waves(seen):
    step = seen["source_of_two_sides"]
    # Two columns of each row.
    assert of(step, "source_rows", "existing_rows", "computed_rows", "forwards") == {
        "source_rows": 10, "existing_rows": 8, "computed_rows": 2, "forwards": 2 * 2,
    }  # fmt: skip
    assert step["statuses"] == {"embedding": {"ok": 2}, "other": {"ok": 2}}


def test_what_the_table_refuses_is_said_in_our_words(seen):
    assert (
        "CHECK constraint mine (NOT path LIKE '%huge%') violated); leave such rows out"
        in (seen["owners_constraint"])
    )
    assert "the table accepts only new rows, by its property delta.app" in seen["append_only"]
    for said in (seen["owners_constraint"], seen["append_only"]):
        assert "org.apache" not in said
