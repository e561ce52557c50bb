"""Spark's daemon, which imports once what each of its Python workers would import again.

A worker that it forks begins at once, and its garbage collector leaves the modules alone. Nothing
is imported that starts a thread, as pyarrow does: a fork has none of the threads.
"""

import gc

import torch  # noqa: F401
import torchvision  # noqa: F401
from pyspark.daemon import manager
from transformers import AutoImageProcessor  # noqa: F401

if __name__ == "__main__":
    gc.freeze()
    manager()
