"""Synthetic scenes, and small checkpoints trained on them, for use offline."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_vision.demo.checkpoint_folders import checkpoint_path
    from spark_vision.demo.scene_files import write_scenes

__all__ = ["checkpoint_path", "write_scenes"]

_LAZY_NAMES = {
    "checkpoint_path": "spark_vision.demo.checkpoint_folders",
    "write_scenes": "spark_vision.demo.scene_files",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY_NAMES[name]), name)
