"""Finds the checkpoints that are included in the package."""

from importlib.resources import files
from pathlib import Path

from spark_vision.errors import CheckpointNotFoundError, InvalidOptionError

CHECKPOINTS = ("dinov2", "clip", "qwen2_5_vl")


def checkpoint_path(name: str) -> str:
    """Find a small checkpoint that was trained on the demo's scenes.

    Args:
        name: `dinov2`, `clip` or `qwen2_5_vl`.

    Returns:
        An absolute path, for an operator's `model_name`. `transformers` can load it too.

    Raises:
        InvalidOptionError: There is no such checkpoint.
        CheckpointNotFoundError: The package is in an archive, from which models cannot be loaded.
    """
    if name not in CHECKPOINTS:
        raise InvalidOptionError(f"checkpoint_path got {name!r}; allowed: {', '.join(CHECKPOINTS)}")
    folder = files("spark_vision.demo") / "checkpoints" / name
    if not isinstance(folder, Path):
        raise CheckpointNotFoundError(
            f"{folder} is inside an archive; install the package, or extract the folder"
        )
    return str(folder.resolve())
