"""What becomes of a call whose outcome comes at its deadline, or after it."""

import threading

import pytest

from spark_vision.images import deadline_threads
from spark_vision.images.deadline_threads import DeadlineThread


@pytest.fixture
def thread():
    thread = DeadlineThread()
    yield thread
    thread.end()


@pytest.mark.parametrize("error", [None, OSError("broken")])
def test_an_outcome_that_comes_at_the_deadline_counts(thread, monkeypatch, error):
    may_return, undone = threading.Event(), []

    def work():
        may_return.wait()
        if error is not None:
            raise error
        return "read"

    class Hanging(set):
        def add(self, each):
            """The call ends after its caller has stopped waiting, before it is given up."""
            may_return.set()
            has_ended = threading.Event()
            each.enqueue(has_ended.set)
            assert has_ended.wait(30)
            super().add(each)

    monkeypatch.setattr(deadline_threads, "_hanging", Hanging())
    if error is None:
        assert thread.call(work, 0, undone.append) == "read"
    else:
        with pytest.raises(OSError, match="broken"):
            thread.call(work, 0, undone.append)
    assert (undone, thread.is_abandoned, len(deadline_threads._hanging)) == ([], False, 0)


def test_a_late_result_is_undone_by_its_own_thread(thread):
    may_return, is_undone, undoers = threading.Event(), threading.Event(), []

    def undo(result):
        undoers.append((result, threading.current_thread()))
        is_undone.set()

    with pytest.raises(TimeoutError):
        thread.call(lambda: may_return.wait() and "late", 0, undo)
    assert thread.is_abandoned
    assert thread in deadline_threads._hanging
    may_return.set()
    assert is_undone.wait(30)
    ((result, undoer),) = undoers
    assert (result, undoer is threading.current_thread()) == ("late", False)
    assert thread not in deadline_threads._hanging
