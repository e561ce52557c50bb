"""Where an operator's checkpoint is: a folder, the local Hugging Face cache, or the hub.

Importing this costs neither torch nor transformers, so the driver can look before any task runs.
"""

from pathlib import Path

from spark_vision.errors import CheckpointNotFoundError
from spark_vision.models.checkpoint_files import Checkpoint, missing_parts, open_folder
from spark_vision.models.fingerprint import fingerprint
from spark_vision.models.hub import cached_folder, download
from spark_vision.operators import Operator

__all__ = ["Checkpoint", "find_checkpoint", "fingerprint", "resolve_checkpoint"]


def find_checkpoint(operator: Operator) -> Checkpoint | None:
    """Find an operator's checkpoint on this host, without the network.

    Looks at `model_path/name`, at `name` as a folder, and into the local Hugging Face cache, where
    only a snapshot with every file that the operator reads counts.

    Returns:
        The checkpoint, or None where this host does not have it.

    Raises:
        CheckpointNotFoundError: The folder is there and lacks files.
        UnsupportedCheckpointError: Its config.json cannot be used.
    """
    for folder in _folders(operator):
        if folder.is_dir():
            missing = missing_parts(folder, operator)
            if missing:
                raise CheckpointNotFoundError(
                    f"the folder {folder} is not a checkpoint that {type(operator).__name__} can "
                    f"use; it lacks {', '.join(missing)}"
                )
            return open_folder(folder)
    cached = cached_folder(operator)
    if cached is None or missing_parts(cached, operator):
        return None
    return open_folder(cached)


def resolve_checkpoint(operator: Operator) -> Checkpoint:
    """Find an operator's checkpoint on this host, or download it from the hub, once per host.

    Raises:
        CheckpointNotFoundError: It is nowhere; the message names every place looked into.
        UnsupportedCheckpointError: Its config.json cannot be used.
    """
    found = find_checkpoint(operator)
    if found is not None:
        return found
    looked_into = ", ".join(f"the folder {folder} (not there)" for folder in _folders(operator))
    folder = download(operator, looked_into)
    missing = missing_parts(folder, operator)
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
