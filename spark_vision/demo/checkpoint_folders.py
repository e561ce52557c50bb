"""Where the checkpoints are that come with the package."""

from importlib.resources import files
from pathlib import Path

from spark_vision.errors import CheckpointNotFoundError, InvalidOptionError

CHECKPOINTS = ("dinov2", "clip", "qwen2_5_vl")


def checkpoint_path(name: str) -> str:
    """Find a small checkpoint that was trained on the demonstration's scenes.

    Args:
        name: `dinov2`, `clip` or `qwen2_5_vl`.

    Returns:
        An absolute folder, as an operator's `model_name` takes it. `transformers` loads it like
        any other.

    Raises:
        InvalidOptionError: There is no such checkpoint.
        CheckpointNotFoundError: The package is in an archive, which no model can be loaded from.
    """
    if name not in CHECKPOINTS:
        raise InvalidOptionError(f"checkpoint_path got {name!r}; allowed: {', '.join(CHECKPOINTS)}")
    folder = files("spark_vision.demo") / "checkpoints" / name
    if not isinstance(folder, Path):
        raise CheckpointNotFoundError(
            f"{folder} is inside an archive; install the package, or copy the folder out of it"
        )
    return str(folder.resolve())
