"""What tests need to know of processes that Spark starts: watched from outside of the code.

On the PYTHONPATH of Spark's workers, and so of the model servers that they start, Python imports
this file at its start. The environment says what to do, once the module in question is imported:

COUNTED_FORWARDS  A folder: each forward pass of a DINOv2 adds its number of images to a file
                  there, and takes as long as the file `forward_seconds` beside it says. With more
                  images than the file `forward_limit` says, it raises that file's error of torch.
                  An image whose mean exceeds what the file `fatal_mean` says kills its process.
COUNTED_DECODES   A folder: each JPEG that torchvision decodes adds a line to a file there.
REACHED_POINTS    A folder: each forward pass of a DINOv2 is a point, `batch 1`, `batch 2`, …; a
                  wanted one is also met by those after it.
RECORDED_LOADS    A folder: each load of a model adds a line of JSON to a file there. It fails in
                  the executor that the file `failing_executor` beside it names.
SIMULATED_GPUS    Their number, as torch reports it; what is loaded on one computes on the CPU.
"""

import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path


class Watcher(importlib.abc.MetaPathFinder):
    def __init__(self, changes):
        self._changes = changes

    def find_spec(self, name, path, target=None):
        change = self._changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            # The modules of a zip file share their loader.
            if module.__name__ == name:
                change(module)

        spec.loader.exec_module = exec_module
        return spec


def add(variable, count):
    path = Path(os.environ[variable]) / str(os.getpid())
    with path.open("a") as file:
        file.write(f"{count}\n")


def count_forwards(module):
    forward = module.Dinov2Embeddings.forward
    pause = Path(os.environ["COUNTED_FORWARDS"]).parent / "forward_seconds"
    limit = pause.parent / "forward_limit"
    fatal = pause.parent / "fatal_mean"

    def counted(self, pixel_values, *args, **kwargs):
        add("COUNTED_FORWARDS", len(pixel_values))
        if pause.exists():
            time.sleep(float(pause.read_text()))
        if fatal.exists() and (pixel_values.mean((1, 2, 3)) > float(fatal.read_text())).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if limit.exists():
            most, error = limit.read_text().split()
            if len(pixel_values) > int(most):
                import torch

                raise getattr(torch, error)("simulated")
        return forward(self, pixel_values, *args, **kwargs)

    module.Dinov2Embeddings.forward = counted


def count_decodes(module):
    operators = module.torch.ops.image
    decode_jpeg = operators.decode_jpeg

    def counted(*args):
        add("COUNTED_DECODES", 1)
        return decode_jpeg(*args)

    operators.decode_jpeg = counted


def stop_at_batches(module):
    import reached_points

    forward = module.Dinov2Embeddings.forward
    folder = Path(os.environ["REACHED_POINTS"])

    def stopped(self, *args, **kwargs):
        with (folder / "batches").open("ab") as file:
            file.write(b".")
            number = file.tell()
        # The first one that comes is met, also where several come at once.
        for wanted in folder.glob("batch *.wanted"):
            if int(wanted.stem.split()[1]) <= number:
                reached_points.stop_at(folder, wanted.stem)
        return forward(self, *args, **kwargs)

    module.Dinov2Embeddings.forward = stopped


def record_loads(module):
    load = module.load_model

    def recorded(checkpoint, dtype, device, *more):
        import torch

        with (Path(os.environ["RECORDED_LOADS"]) / str(os.getpid())).open("a") as file:
            words = {"device": str(device), "pid": os.getpid(), "package": module.__file__}
            file.write(json.dumps(words) + "\n")
        failing = Path(os.environ["RECORDED_LOADS"]).parent / "failing_executor"
        if failing.exists() and f'"pid": {failing.read_text()},' in sys.argv[1]:
            raise OSError("the disk of this host is broken")
        return load(checkpoint, dtype, torch.device("cpu"), *more)

    module.load_model = recorded


def simulate_gpus(module):
    module.cuda.is_available = lambda: True
    module.cuda.device_count = lambda: int(os.environ["SIMULATED_GPUS"])


CHANGES = {
    "COUNTED_FORWARDS": ("transformers.models.dinov2.modeling_dinov2", count_forwards),
    "COUNTED_DECODES": ("torchvision.io.image", count_decodes),
    "REACHED_POINTS": ("transformers.models.dinov2.modeling_dinov2", stop_at_batches),
    "RECORDED_LOADS": ("spark_vision.models.families", record_loads),
    "SIMULATED_GPUS": ("torch", simulate_gpus),
}
wanted = dict(change for name, change in CHANGES.items() if name in os.environ)
if wanted:
    sys.meta_path.insert(0, Watcher(wanted))
