"""A request to a service that is busy or away for a moment is sent again, within bounds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from spark_vision.errors import IndexConnectionError
from spark_vision.search.extras import import_extra

_Result = TypeVar("_Result")


class TransientError(Exception):
    """A request failed in a way that may pass.

    Attributes:
        reason: One sentence, without secrets.
        retry_after: The seconds that the service asks to wait; None where it does not say.
        has_answer: Whether the service answered at all.
    """

    def __init__(
        self, reason: str, retry_after: float | None = None, *, has_answer: bool = True
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.has_answer = has_answer


class RequestRefusedError(Exception):
    """The service refuses what a request holds; part of it may be accepted.

    Attributes:
        reason: One sentence, without secrets.
        is_of_records: Whether the reason is in the records that the request holds.
    """

    def __init__(self, reason: str, *, is_of_records: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_of_records = is_of_records


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after which waits, a request is sent again.

    Attributes:
        attempts: The maximum number of times that it is sent.
        first_wait_seconds: The maximum of the first wait; it doubles with each attempt, and the
            wait is drawn from zero to it (full jitter).
        longest_wait_seconds: The maximum of any drawn wait. What a service asks for by
            Retry-After is kept in any case.
        total_seconds: No wait begins that would end later than this after the first attempt.
        first_contact_attempts: The maximum number while the service has never answered: a wrong
            address is to be known within seconds.
        sleep: Waits for some seconds.
        clock: The time in seconds.
    """

    attempts: int = 8
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    total_seconds: float = 300.0
    first_contact_attempts: int = 3
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def run(
        self, request: Callable[[], _Result], *, address: str, was_reached: bool = True
    ) -> _Result:
        """Call until it succeeds, fails for good, or the policy ends.

        Args:
            request: Raises `TransientError` for what may pass.
            address: The service, for messages; without credentials.
            was_reached: Whether the service has answered before.

        Raises:
            IndexConnectionError: It still failed at the last attempt.
        """
        tenacity = import_extra("tenacity", "milvus,pinecone")
        drawn = tenacity.wait_random_exponential(
            multiplier=self.first_wait_seconds, max=self.longest_wait_seconds
        )
        start = self.clock()

        def wait(state: Any) -> float:
            asked: float | None = state.outcome.exception().retry_after
            # Clients that were all told one time do not come back all at once.
            jitter: float = drawn(state)
            return jitter if asked is None else asked + min(jitter, 1.0)

        def ends_too_late(state: Any) -> bool:
            return bool(self.clock() - start + state.upcoming_sleep > self.total_seconds)

        def is_nowhere(state: Any) -> bool:
            answered = was_reached or state.outcome.exception().has_answer
            return not answered and state.attempt_number >= self.first_contact_attempts

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            wait=wait,
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(self.attempts), ends_too_late, is_nowhere
            ),
            sleep=self.sleep,
            reraise=True,
        )
        try:
            result: _Result = retrying(request)
        except TransientError as error:
            attempts = retrying.statistics["attempt_number"]
            times = "once" if attempts == 1 else f"{attempts} times"
            raise IndexConnectionError(f"{address}: {error.reason}; tried {times}") from None
        return result
