"""Named points of a run, where tests kill its processes; outside of tests they do nothing."""

from collections.abc import Callable


def _pass_by(name: str) -> None:
    """What happens at a point."""


at_point: Callable[[str], None] = _pass_by


def reach(name: str) -> None:
    """Report that a run has reached a point, such as `before survey`."""
    at_point(name)
