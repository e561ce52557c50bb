"""What a run that was killed left behind is committed or removed by the next one, never doubled."""

import pytest

from spark_vision import write_vision_columns
from spark_vision.tables import run, stage


@pytest.fixture
def table(tmp_path):
    return str(tmp_path / "vectors")


@pytest.fixture
def staged(tmp_path):
    """The table's stage folder."""
    return tmp_path / "vectors" / "_spark_vision"


class KilledError(BaseException):
    """Takes the place of kill -9: no `except Exception` stops it."""


@pytest.fixture
def kill_at(monkeypatch):
    """Makes a write stop as if killed before a step, its stage left where it is."""

    def kill(owner, name, *, after=False):
        work = getattr(owner, name)

        def killed(*args, **kwargs):
            if after:
                work(*args, **kwargs)
            raise KilledError

        monkeypatch.setattr(owner, name, killed)
        # A process that is killed cleans nothing up.
        monkeypatch.setattr(stage.RunFolder, "end", lambda self: None)

    return kill


def rows_of(spark, table):
    return sorted(row["path"] for row in spark.read.format("delta").load(table).collect())


@pytest.mark.parametrize(
    ("owner", "name", "after", "recovered", "forwards"),
    [
        (stage.RunFolder, "finish", False, 0, 12),
        (run, "commit_wave", False, 7, 6),
        (run, "commit_wave", True, 7, 6),
    ],
    ids=["before the stage is complete", "before the commit", "after the commit"],
)
def test_a_wave_that_was_left_is_committed_once_or_computed_again(
    spark, read_photos, dino, table, staged, monkeypatch, kill_at, count_forwards,
    owner, name, after, recovered, forwards,
):  # fmt: skip
    columns = {"embedding": dino}
    kill_at(owner, name, after=after)
    with pytest.raises(KilledError):
        write_vision_columns(read_photos(), table, ["path"], columns)
    monkeypatch.undo()
    assert staged.exists()
    monkeypatch.setattr(stage, "DEAD_SECONDS", 0.1)
    result = write_vision_columns(read_photos(), table, ["path"], columns)
    assert (result.recovered, result.computed) == (recovered, 7 - recovered)
    assert count_forwards() == forwards
    paths = rows_of(spark, table)
    assert len(paths) == len(set(paths)) == 7
    assert not staged.exists()
