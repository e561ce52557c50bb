"""Counts the images that reach a model's forward, in whatever Python process loads it.

On the PYTHONPATH of Spark's workers, Python imports this file at its start. Once transformers'
DINOv2 is imported, each forward pass adds its number of images to a file of the folder that the
environment names: a count taken from outside of the code under test.
"""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

WATCHED = "transformers.models.dinov2.modeling_dinov2"


class Watcher(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            count_forwards(module.Dinov2Embeddings)

        spec.loader.exec_module = exec_module
        return spec


def count_forwards(embeddings):
    forward = embeddings.forward

    def counted(self, pixel_values, *args, **kwargs):
        path = Path(os.environ["COUNTED_FORWARDS"]) / str(os.getpid())
        with path.open("a") as file:
            file.write(f"{len(pixel_values)}\n")
        return forward(self, pixel_values, *args, **kwargs)

    embeddings.forward = counted


if "COUNTED_FORWARDS" in os.environ:
    sys.meta_path.insert(0, Watcher())
