"""The Hugging Face variables of the driver, sent to the executors with the function.

They are set only while a checkpoint is resolved: Spark reuses a Python worker for other jobs, which
must not get this job's token. The token appears in no repr, log or query plan.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

HUB_VARIABLES = ("HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

# Environment variables are global to the process.
_applying = threading.Lock()


@dataclass(frozen=True)
class HubEnvironment:
    """The Hugging Face variables that were set where the function was created."""

    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def capture(cls) -> "HubEnvironment":
        """Read the variables of this process."""
        return cls(tuple((name, os.environ[name]) for name in HUB_VARIABLES if name in os.environ))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the variables that this process lacks, and unset them when the block ends."""
        # Its import reads the variables, and must see only this process's own.
        import huggingface_hub.constants  # noqa: F401

        with _applying:
            lacking = {name: value for name, value in self.variables if name not in os.environ}
            os.environ.update(lacking)
            try:
                yield
            finally:
                for name in lacking:
                    os.environ.pop(name, None)
