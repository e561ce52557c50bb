"""The Hugging Face settings of the driver, carried to the executors with the function.

They hold only while a checkpoint is looked for: Spark gives a Python worker to one job after the
other, and what one job may read with its token is no business of the next. The token is in no repr,
log or plan text.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

HUB_VARIABLES = ("HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

# The environment is the whole process's.
_applying = threading.Lock()


@dataclass(frozen=True)
class HubEnvironment:
    """The Hugging Face variables that were set where the function was made."""

    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def capture(cls) -> "HubEnvironment":
        """Read the variables of this process."""
        return cls(tuple((name, os.environ[name]) for name in HUB_VARIABLES if name in os.environ))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set those variables that this process lacks, and take them away again."""
        # It reads the variables when it is first imported, and must keep this process's own.
        import huggingface_hub.constants  # noqa: F401

        with _applying:
            lacking = {name: value for name, value in self.variables if name not in os.environ}
            os.environ.update(lacking)
            try:
                yield
            finally:
                for name in lacking:
                    os.environ.pop(name, None)
