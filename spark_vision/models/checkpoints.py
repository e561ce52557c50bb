"""Finds an operator's checkpoint: in a folder, in the local Hugging Face cache, or on the hub.

It imports neither torch nor transformers, so the driver can check before any task runs.
"""

from pathlib import Path

from spark_vision.errors import CheckpointNotFoundError
from spark_vision.models.checkpoint_files import (
    Checkpoint,
    fingerprint,
    missing_files,
    open_folder,
)
from spark_vision.models.hub import cached_folder, download
from spark_vision.operators import Operator

__all__ = ["Checkpoint", "find_checkpoint", "fingerprint", "resolve_checkpoint"]


def find_checkpoint(operator: Operator) -> Checkpoint | None:
    """Find an operator's checkpoint on this host, without network access.

    Searches `model_path/name`, then `name` as a folder, then the local Hugging Face cache, where a
    snapshot must have every file that the operator needs.

    Returns:
        The checkpoint, or None if this host does not have it.

    Raises:
        CheckpointNotFoundError: The folder exists but lacks files.
        UnsupportedCheckpointError: Its config.json is not supported.
    """
    for folder in _folders(operator):
        if folder.is_dir():
            missing = missing_files(folder, operator)
            if missing:
                raise CheckpointNotFoundError(
                    f"the folder {folder} is not a checkpoint that {type(operator).__name__} can "
                    f"use; it lacks {', '.join(missing)}"
                )
            return open_folder(folder)
    cached = cached_folder(operator)
    if cached is None or missing_files(cached, operator):
        return None
    return open_folder(cached)


def resolve_checkpoint(operator: Operator) -> Checkpoint:
    """Find an operator's checkpoint on this host, or download it from the hub, once per host.

    Raises:
        CheckpointNotFoundError: It was not found; the message lists every place searched.
        UnsupportedCheckpointError: Its config.json is not supported.
    """
    found = find_checkpoint(operator)
    if found is not None:
        return found
    searched = ", ".join(
        f"the folder {folder.absolute()} (missing)" for folder in _folders(operator)
    )
    folder = download(operator, searched)
    missing = missing_files(folder, operator)
    if missing:
        raise CheckpointNotFoundError(
            f"{operator.checkpoint_name!r} on the hub is not a checkpoint that "
            f"{type(operator).__name__} can use; it lacks {', '.join(missing)}"
        )
    return open_folder(folder)


def _folders(operator: Operator) -> list[Path]:
    name = Path(operator.checkpoint_name)
    places = [Path(operator.model_path) / name] if operator.model_path else []
    return list(dict.fromkeys([*places, name]))
