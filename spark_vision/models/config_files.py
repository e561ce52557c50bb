"""Reads and validates the JSON files of a checkpoint, whose values size everything built later.

A checkpoint is trusted. But a corrupt or hand-edited one should be reported, with the reason,
before a library allocates memory according to it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spark_vision.errors import UnsupportedCheckpointError, in_one_line

# Published files are far smaller: the largest list 21,000 labels, or the shards of many layers.
MAX_BYTES = 16 * 2**20
# For vocabulary files, which libraries read in full.
MAX_VOCABULARY_BYTES = 256 * 2**20
MAX_DEPTH = 32

_LAYERS, _WIDTH, _COUNT, _PIXELS = 10_000, 2**20, 2**24, 2**40
# The maximum plausible value of integer settings, by name.
_MAXIMA: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "depth"), _LAYERS),
    **dict.fromkeys(
        (
            *("hidden_size", "intermediate_size", "embed_dim", "out_hidden_size", "head_dim"),
            *("projection_dim", "projection_size", "pooler_output_size"),
            *("num_attention_heads", "num_key_value_heads", "num_heads"),
            *("num_channels", "in_channels", "num_register_tokens", "num_labels"),
            *("image_size", "patch_size", "temporal_patch_size", "spatial_patch_size"),
            *("merge_size", "spatial_merge_size", "window_size"),
            *("size", "crop_size", "height", "width"),
        ),
        _WIDTH,
    ),
    **dict.fromkeys(
        (
            *("vocab_size", "max_position_embeddings", "num_position_embeddings"),
            *("type_vocab_size", "num_patches", "max_num_patches"),
        ),
        _COUNT,
    ),
    **dict.fromkeys(("shortest_edge", "longest_edge"), _PIXELS),
}


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint.

    Raises:
        UnsupportedCheckpointError: It is not JSON, or is too large or too deeply nested.
    """
    check_size(path, MAX_BYTES)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise _too_deep(path) from None
    except ValueError as error:
        raise UnsupportedCheckpointError(f"{path} is not JSON: {error}") from error


def check_size(path: Path, max_bytes: int) -> None:
    """Reject a file that is too large, before it is read.

    Raises:
        UnsupportedCheckpointError: It has more than `max_bytes`.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise UnsupportedCheckpointError(
            f"{path} has {size:,} bytes, more than the maximum of {max_bytes:,} for such a file; "
            "is it another file under its name?"
        )


def read_config(path: Path) -> dict[str, Any]:
    """Read a settings file: a JSON object with plausible sizes.

    Raises:
        UnsupportedCheckpointError: It is not; the message names the file and the setting.
    """
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UnsupportedCheckpointError(
            f"{path} is a JSON {type(settings).__name__}, not an object"
        )
    for name, value in _leaves(path, settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise UnsupportedCheckpointError(f"{path} has {name}={value}; allowed: a finite number")
        maximum = _MAXIMA.get(name)
        if maximum is None or value is None or (type(value) is int and 0 <= value <= maximum):
            continue
        raise UnsupportedCheckpointError(
            f"{path} has {name}={in_one_line(repr(value))}; allowed: an integer from 0 to "
            f"{maximum:,}"
        )
    return settings


def _leaves(path: Path, settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every scalar value with the name of its setting."""
    waiting: list[tuple[str, Any, int]] = [("", settings, 1)]
    while waiting:
        name, value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _too_deep(path)
        if isinstance(value, dict):
            waiting += [(each, inner, depth + 1) for each, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(name, inner, depth + 1) for inner in value]
        else:
            yield name, value


def _too_deep(path: Path) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(
        f"{path} is nested deeper than {MAX_DEPTH} levels, the maximum for a checkpoint's settings"
    )
