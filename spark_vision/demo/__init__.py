"""Synthetic scenes, and small checkpoints trained on them, for use offline."""

from spark_vision.demo.checkpoint_folders import checkpoint_path
from spark_vision.demo.scene_files import write_scenes

__all__ = ["checkpoint_path", "write_scenes"]
