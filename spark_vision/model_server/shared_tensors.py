"""Tensors in anonymous shared memory: written by one process, read in place by another.

A writer reuses one memfd for all its messages, so pages are cleared and mapped once, not once per
batch. The memory is sealed against shrinking, which would crash its reader. It has no name in a
file system, so a killed process leaves nothing behind. Torch is imported with the first tensor, so
that a server can answer before torch is loaded.
"""

import fcntl
import math
import mmap
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64
MIN_BYTES = 2**20
# Of one message: batches are far smaller, but a sparse file can claim any size.
MAX_BYTES = 2**36
_MAX_TENSORS = 32
_MAX_DIMENSIONS = 8
# With larger ones, products of dimensions would overflow torch's 64-bit integers.
_MAX_DIMENSION = 2**31
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
# The dtypes that may be sent.
_ITEM_BYTES = {
    "uint8": 1,
    "bool": 1,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
}

# Dtype, shape, strides (in elements) and offset (in bytes) of the tensors of a message, by name.
Layout = dict[str, dict[str, Any]]


class TensorWriter:
    """Writes tensors into shared memory for the other side."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def write(self, tensors: "Mapping[str, torch.Tensor]") -> tuple[Layout, int | None]:
        """Copy tensors into the memory, overwriting those of the last message.

        Returns:
            Their layout, and the descriptor of new memory or None. The caller sends the descriptor
            with the message and closes it.
        """
        import torch

        layout: Layout = {}
        end = 0
        for name, tensor in tensors.items():
            # Keep the memory format of pixels (channels last or not).
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
            size = max(MIN_BYTES, 1 << (end - 1).bit_length())
            descriptor = os.memfd_create("spark-vision", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(descriptor, size)
        for name, tensor in tensors.items():
            _view(self._memory, layout[name]).copy_(tensor)
        return layout, descriptor


class TensorReader:
    """Reads tensors from the shared memory of the other side."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def replace(self, descriptor: int) -> None:
        """Map the memory of a received descriptor, and close the descriptor.

        Raises:
            ValueError: The memory is not sealed against shrinking, or is too large.
            OSError: The descriptor is not shared memory.
        """
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ValueError("the shared memory is not sealed")
            size = os.fstat(descriptor).st_size
            if size > MAX_BYTES:
                raise ValueError(f"shared memory of {size} bytes; allowed: at most {MAX_BYTES}")
            self._memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)

    def read(self, layout: Any) -> "dict[str, torch.Tensor]":
        """Return views of the tensors, which are valid until the next message overwrites them.

        Args:
            layout: Any JSON value, from another process.

        Raises:
            ValueError: It is not a layout that a writer creates: tensors without overlap, in order.
                So the memory that was sent bounds the tensors of a message.
        """
        if not isinstance(layout, dict) or len(layout) > _MAX_TENSORS:
            raise ValueError(f"the layout is not one of at most {_MAX_TENSORS} tensors")
        memory_bytes, end = len(self._memory or b""), 0
        for name, place in layout.items():
            try:
                end = _check_place(place, end)
            except ValueError as error:
                raise ValueError(f"the tensor {name[:40]!r}: {error}") from None
            if end > memory_bytes:
                raise ValueError(f"the tensor {name[:40]!r} exceeds {memory_bytes} bytes of memory")
        return {name: _view(self._memory, place) for name, place in layout.items()}


def _check_place(place: Any, start: int) -> int:
    """Check the place of one tensor, at or after `start`; return its end."""
    if not isinstance(place, dict) or set(place) != {"dtype", "shape", "strides", "offset"}:
        raise ValueError("its place is not a dtype, a shape, strides and an offset")
    dtype, shape, strides = place["dtype"], place["shape"], place["strides"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"its dtype is none of {', '.join(_ITEM_BYTES)}")
    if not _are_counts(shape, _MAX_DIMENSION) or not _are_counts(strides, MAX_BYTES):
        raise ValueError("its shape or its strides are not short lists of integers")
    if len(shape) != len(strides):
        raise ValueError("its numbers of strides and dimensions differ")
    offset = place["offset"]
    if not _are_counts([offset], MAX_BYTES) or offset < start or offset % ALIGNMENT:
        raise ValueError("its offset is not aligned, or overlaps the tensor before it")
    if 0 in shape:
        return start
    step = 1
    # The stride of a dimension of size 1 has no meaning.
    for stride, size in sorted(pair for pair in zip(strides, shape, strict=True) if pair[1] > 1):
        if stride != step:
            raise ValueError("its strides leave gaps, or repeat an element")
        step *= size
    return int(offset) + math.prod(shape) * _ITEM_BYTES[dtype]


def _are_counts(values: Any, maximum: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= _MAX_DIMENSIONS
        and all(type(value) is int and 0 <= value <= maximum for value in values)
    )


def _view(memory: mmap.mmap | None, place: dict[str, Any]) -> "torch.Tensor":
    import torch

    dtype, shape = getattr(torch, place["dtype"]), place["shape"]
    if 0 in shape or memory is None:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=place["offset"])
    return flat.as_strided(shape, place["strides"])
