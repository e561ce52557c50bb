"""Counts images that are decoded, or reach a model, in whatever Python process does it.

On the PYTHONPATH of Spark's workers, Python imports this file at its start. Once torchvision's
decoders or transformers' DINOv2 are imported, each decoded JPEG and each image of a forward pass is
added to a file of the folder that the environment names: a count taken from outside of the code
under test.
"""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path


def add(variable, count):
    path = Path(os.environ[variable]) / str(os.getpid())
    with path.open("a") as file:
        file.write(f"{count}\n")


def count_forwards(modeling):
    forward = modeling.Dinov2Embeddings.forward

    def counted(self, pixel_values, *args, **kwargs):
        add("COUNTED_FORWARDS", len(pixel_values))
        return forward(self, pixel_values, *args, **kwargs)

    modeling.Dinov2Embeddings.forward = counted


def count_decodes(decoders):
    operators = decoders.torch.ops.image
    decode_jpeg = operators.decode_jpeg

    def counted(*args):
        add("COUNTED_DECODES", 1)
        return decode_jpeg(*args)

    operators.decode_jpeg = counted


WATCHED = {
    "transformers.models.dinov2.modeling_dinov2": count_forwards,
    "torchvision.io.image": count_decodes,
}


class Watcher(importlib.abc.MetaPathFinder):
    def __init__(self):
        self.waiting = dict(WATCHED)

    def find_spec(self, name, path, target=None):
        if name not in self.waiting:
            return None
        count = self.waiting.pop(name)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            count(module)

        spec.loader.exec_module = exec_module
        return spec


if "COUNTED_FORWARDS" in os.environ:
    sys.meta_path.insert(0, Watcher())
