"""What a task reads of a query's settings."""

import pytest

from spark_vision.errors import InvalidOptionError
from spark_vision.executor.task import LOAD_SECONDS, MAX_SECONDS, _seconds


@pytest.mark.parametrize("said", ["1e7", "1000001", "inf", "nan", "0", "-1", "soon"])
def test_times_that_no_system_can_wait_are_refused(said):
    with pytest.raises(InvalidOptionError, match=rf"loadSeconds got '{said}'.* at most 1,000,000"):
        _seconds({LOAD_SECONDS: said}, LOAD_SECONDS)
    assert _seconds({LOAD_SECONDS: "1e6"}, LOAD_SECONDS) == MAX_SECONDS
    assert _seconds({LOAD_SECONDS: "0"}, LOAD_SECONDS, zero=True) == 0
