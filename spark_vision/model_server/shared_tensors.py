"""Tensors in anonymous shared memory: written by one process, read in place by another.

A writer keeps one piece of memory (a memfd) and writes message after message into it, so pages are
cleared and mapped once, not once per batch. It is sealed against shrinking: a reader whose memory
could be taken away would die of it. Nothing has a name in a file system, and nothing is left behind
by a process that is killed.
"""

import fcntl
import math
import mmap
import os
from collections.abc import Mapping
from typing import Any

import torch

ALIGNMENT = 64
LEAST_BYTES = 2**20
# Of one message: no batch comes near, and a file without content may say that it is longer.
MOST_BYTES = 2**36
_MOST_TENSORS = 32
_MOST_DIMENSIONS = 8
# Beyond it, products of dimensions would not fit what torch counts with.
_LONGEST_DIMENSION = 2**31
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
            ValueError: The memory could shrink under its reader, or is too large.
            OSError: It is no memory.
        """
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ValueError("the shared memory is not sealed")
            size = os.fstat(descriptor).st_size
            if size > MOST_BYTES:
                raise ValueError(f"shared memory of {size} bytes; allowed: {MOST_BYTES}")
            self._memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)

    def read(self, layout: Any) -> dict[str, torch.Tensor]:
        """Give views of the tensors, which hold until the next message is written over them.

        Raises:
            ValueError: The layout is none that a writer makes, or does not fit the memory.
        """
        check_layout(layout, 0 if self._memory is None else len(self._memory))
        return {name: _view(self._memory, place) for name, place in layout.items()}


def check_layout(layout: Any, memory_bytes: int) -> None:
    """Make sure that tensors lie in memory as a writer lays them: in turn, each element once.

    So what a few bytes of a message show is never more than the memory that came with it.

    Args:
        layout: From another process: any JSON value.
        memory_bytes: Of the shared memory.

    Raises:
        ValueError: They do not.
    """
    if not isinstance(layout, dict) or len(layout) > _MOST_TENSORS:
        raise ValueError(f"a layout that is not one of {_MOST_TENSORS} tensors or fewer")
    end = 0
    for name, place in layout.items():
        try:
            end = _check_place(place, end)
        except ValueError as error:
            raise ValueError(f"the tensor {name[:40]!r}: {error}") from None
        if end > memory_bytes:
            raise ValueError(f"the tensor {name[:40]!r} ends after {memory_bytes} bytes of memory")


def _check_place(place: Any, start: int) -> int:
    """Check one tensor's place, which begins at `start` or after it; return its end."""
    if not isinstance(place, dict) or set(place) != {"dtype", "shape", "strides", "offset"}:
        raise ValueError("its place is not a dtype, a shape, strides and an offset")
    dtype, shape, strides = place["dtype"], place["shape"], place["strides"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"its dtype is none of {', '.join(_DTYPES)}")
    if not _are_counts(shape, _LONGEST_DIMENSION) or not _are_counts(strides, MOST_BYTES):
        raise ValueError("its shape or its strides are not short lists of whole numbers")
    if len(shape) != len(strides):
        raise ValueError("it has not as many strides as dimensions")
    offset = place["offset"]
    if not _are_counts([offset], MOST_BYTES) or offset < start or offset % ALIGNMENT:
        raise ValueError("its offset is not an aligned one after the tensor before it")
    if 0 in shape:
        return start
    step = 1
    # A dimension of size 1 is never stepped along, so its stride may be anything.
    for stride, size in sorted(pair for pair in zip(strides, shape, strict=True) if pair[1] > 1):
        if stride != step:
            raise ValueError("its strides leave gaps, or show an element twice")
        step *= size
    return int(offset) + math.prod(shape) * _DTYPES[dtype].itemsize


def _are_counts(values: Any, most: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= _MOST_DIMENSIONS
        and all(type(value) is int and 0 <= value <= most for value in values)
    )


def _view(memory: mmap.mmap | None, place: dict[str, Any]) -> torch.Tensor:
    dtype, shape = _DTYPES[place["dtype"]], place["shape"]
    if 0 in shape or memory is None:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=place["offset"])
    return flat.as_strided(shape, place["strides"])
