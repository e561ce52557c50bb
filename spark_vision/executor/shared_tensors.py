"""Tensors in anonymous shared memory: written by one process, read in place by another.

A writer keeps one piece of memory (a memfd) and writes message after message into it, so pages are
cleared and mapped once, not once per batch. It is sealed against shrinking: a reader whose memory
could be taken away would die of it. Nothing has a name in a file system, and nothing is left behind
by a process that is killed.
"""

import fcntl
import mmap
import os
from collections.abc import Mapping
from typing import Any

import torch

ALIGNMENT = 64
LEAST_BYTES = 2**20
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.uint8,
        torch.int32,
        torch.int64,
        torch.bool,
        torch.float16,
        torch.bfloat16,
        torch.float32,
    )
}

# Where a message's tensors are: dtype, shape, strides (in elements) and offset (in bytes) by name.
Layout = dict[str, dict[str, Any]]


class TensorWriter:
    """One side's memory for what it sends."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def write(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Layout, int | None]:
        """Copy tensors in, over those of the last message.

        Returns:
            Their layout, and a descriptor where the memory is a new one, which the caller sends
            along and closes.
        """
        layout: Layout = {}
        end = 0
        for name, tensor in tensors.items():
            # Pixels stay interleaved or planar, as the model would get them without a copy.
            strides = torch.empty_like(tensor, device="meta").stride()
            layout[name] = {
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "strides": list(strides),
                "offset": end,
            }
            end += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        descriptor = None
        if self._memory is None or len(self._memory) < end:
            size = max(LEAST_BYTES, 1 << (end - 1).bit_length())
            descriptor = os.memfd_create("spark-vision", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(descriptor, size)
        for name, tensor in tensors.items():
            _view(self._memory, layout[name]).copy_(tensor)
        return layout, descriptor


class TensorReader:
    """The other side's memory, as this side sees it."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def replace(self, descriptor: int) -> None:
        """Map the memory of a descriptor that came with a message, and close the descriptor.

        Raises:
            ValueError: The memory could shrink under its reader.
        """
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ValueError("the shared memory is not sealed")
            self._memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def read(self, layout: Layout) -> dict[str, torch.Tensor]:
        """Give views of the tensors, which hold until the next message is written over them.

        Raises:
            ValueError, RuntimeError: The layout does not fit the memory.
        """
        if layout and self._memory is None:
            raise ValueError("tensors came without shared memory")
        return {name: _view(self._memory, place) for name, place in layout.items()}


def _view(memory: mmap.mmap | None, place: dict[str, Any]) -> torch.Tensor:
    dtype, shape, strides = _DTYPES[place["dtype"]], place["shape"], place["strides"]
    if 0 in shape or memory is None:
        return torch.empty(shape, dtype=dtype)
    element_count = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    flat = torch.frombuffer(memory, dtype=dtype, count=element_count, offset=place["offset"])
    return flat.as_strided(shape, strides)
