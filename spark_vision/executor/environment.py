"""The Hugging Face settings of the driver, carried to the executors with the function.

`huggingface_hub` reads them when it is first imported, so they are applied before that. A value
that an executor already has stays. The token is in no repr, log or plan text.
"""

import os
from dataclasses import dataclass, field

HUB_VARIABLES = ("HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class HubEnvironment:
    """The Hugging Face variables that were set where the function was made."""

    variables: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    def capture(cls) -> "HubEnvironment":
        """Read the variables of this process."""
        return cls(tuple((name, os.environ[name]) for name in HUB_VARIABLES if name in os.environ))

    def apply(self) -> None:
        """Set those variables that this process lacks."""
        for name, value in self.variables:
            os.environ.setdefault(name, value)
