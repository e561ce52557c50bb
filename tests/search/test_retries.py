"""When a request is sent again, and after which wait; time stands still here."""

import pytest

from spark_vision.errors import IndexConnectionError
from spark_vision.search.retries import RequestRefusedError, RetryPolicy, TransientError


class FailingRequest:
    """Fails as it is told, then returns `done`; `waits` has the waits between."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.calls = 0
        self.waits = []
        self.now = 0.0

    def __call__(self):
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds

    def policy(self, **options):
        return RetryPolicy(sleep=self.sleep, clock=lambda: self.now, **options)


def test_waits_double_up_to_a_maximum_and_are_drawn():
    waits = []
    for _ in range(30):
        request = FailingRequest(*[TransientError("busy")] * 7)
        assert request.policy(longest_wait_seconds=4).run(request, address="here") == "done"
        waits.append(request.waits)
    for place, bound in enumerate([0.5, 1, 2, 4, 4, 4, 4]):
        drawn = [each[place] for each in waits]
        assert max(drawn) <= bound
        assert len(set(drawn)) == 30
        # Of thirty draws from zero to the bound.
        assert max(drawn) > bound / 2


def test_no_wait_ends_after_the_total():
    request = FailingRequest(*[TransientError("busy", retry_after=40)] * 9)
    with pytest.raises(IndexConnectionError, match="here: busy; tried 3 times"):
        request.policy(total_seconds=100).run(request, address="here")
    assert request.now <= 100
    assert request.calls == 3


def test_a_service_that_never_answered_is_given_up_sooner():
    for was_reached, calls in ((False, 3), (True, 8)):
        request = FailingRequest(*[TransientError("refused", has_answer=False)] * 20)
        with pytest.raises(IndexConnectionError):
            request.policy().run(request, address="here", was_reached=was_reached)
        assert request.calls == calls


def test_what_is_refused_is_not_sent_again():
    request = FailingRequest(RequestRefusedError("no"))
    with pytest.raises(RequestRefusedError):
        request.policy().run(request, address="here")
    assert (request.calls, request.waits) == (1, [])
