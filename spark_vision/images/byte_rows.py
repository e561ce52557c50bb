"""The rows of a binary or string Arrow array, as slices of the array's own buffers.

In every layout (32 or 64-bit offsets, fixed size, views, dictionary) a row is a buffer, a start and
a stop. These are computed for all rows at once, so that reading a row is one slice.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.dlpack import from_dlpack

_Integers = npt.NDArray[np.int64]
_NULL = -1
_OF_OFFSETS = ("binary", "large_binary", "string", "large_string", "null")
_OF_VIEWS = ("binary_view", "string_view")


def tensor_view(buffer: pa.Buffer | bytes) -> torch.Tensor:
    """Return a zero-copy view of bytes as a uint8 tensor `[bytes]` that keeps them alive.

    It uses DLPack, because `torch.frombuffer` warns about read-only memory. No caller may write to
    the view.
    """
    if isinstance(buffer, bytes):
        buffer = pa.py_buffer(buffer)
    array = pa.Array.from_buffers(pa.uint8(), buffer.size, [None, buffer])
    tensor: torch.Tensor = from_dlpack(array)
    return tensor


class ByteRows:
    """Zero-copy access to the bytes of each row of a binary or string array.

    Args:
        array: A binary or string array of any layout, a dictionary of one, or a null array;
            it may be a slice of a longer one.

    Raises:
        TypeError: The array holds neither binary values nor strings.
    """

    def __init__(self, array: pa.Array) -> None:
        self._buffers: list[torch.Tensor]
        self._buffers, which, starts, stops = _locate(array)
        self._which: list[int] | None = which.tolist() if len(self._buffers) > 1 else None
        self._starts: list[int] = starts.tolist()
        self._stops: list[int] = stops.tolist()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: int) -> torch.Tensor | None:
        """Return the row's bytes as uint8 `[bytes]`, or None where it is null."""
        start = self._starts[row]
        if start == _NULL:
            return None
        buffer = self._buffers[0 if self._which is None else self._which[row]]
        return buffer[start : self._stops[row]]


def _locate(array: pa.Array) -> tuple[list[torch.Tensor], _Integers, _Integers, _Integers]:
    """Return the buffers, and per row: buffer index, start (`_NULL` for null), stop."""
    kind = array.type
    first, rows = array.offset, len(array)
    buffers: list[torch.Tensor] = []
    which = np.zeros(rows, np.int64)
    starts = np.zeros(rows, np.int64)
    stops = np.zeros(rows, np.int64)
    if pa.types.is_dictionary(kind):
        buffers, *of_values = _locate(array.dictionary)
        # Indices of null rows are undefined.
        indices = array.indices.fill_null(0).to_numpy(zero_copy_only=False)
        if len(array.dictionary):
            which, starts, stops = (each[indices] for each in of_values)
    elif pa.types.is_fixed_size_binary(kind):
        buffers = [_tensor_or_empty(array.buffers()[1])]
        starts = (np.arange(rows, dtype=np.int64) + first) * kind.byte_width
        stops = starts + kind.byte_width
    elif str(kind) in _OF_VIEWS:
        views, *data = array.buffers()[1:]
        buffers = [_tensor_or_empty(each) for each in (views, *data)]
        which, starts, stops = _locate_views(views, first, rows)
    elif str(kind) not in _OF_OFFSETS:
        raise TypeError(f"neither binary nor strings: {kind}")
    elif rows:
        # A cast changes the width of the offsets, and keeps the data.
        array = array.cast(pa.large_binary())
        _, offsets, data = array.buffers()
        buffers = [_tensor_or_empty(data)]
        bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + rows + 1]
        # A copy: starts are overwritten below, and the array's own must not change.
        starts, stops = bounds[:-1].copy(), bounds[1:]
    if array.null_count:
        starts[array.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return buffers, which, starts, stops


def _locate_views(
    views: pa.Buffer | None, first: int, rows: int
) -> tuple[_Integers, _Integers, _Integers]:
    """Locate the rows of a view array: up to 12 bytes are inline, more are in a data buffer."""
    if views is None or not rows:
        nothing = np.zeros(rows, np.int64)
        return nothing, nothing.copy(), nothing.copy()
    fields = np.frombuffer(views, np.int32).reshape(-1, 4)[first : first + rows].astype(np.int64)
    lengths = fields[:, 0]
    is_inline = lengths <= 12
    inline_starts = (np.arange(rows, dtype=np.int64) + first) * 16 + 4
    starts = np.where(is_inline, inline_starts, fields[:, 3])
    return np.where(is_inline, 0, fields[:, 2] + 1), starts, starts + lengths


def _tensor_or_empty(buffer: pa.Buffer | None) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8) if buffer is None else tensor_view(buffer)
