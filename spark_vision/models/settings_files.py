"""The JSON files of a checkpoint, read with suspicion: what they say sizes all that is built later.

A checkpoint is trusted. Yet one that is damaged or made by hand shall be named, with what is wrong
in it, before a library takes memory by its word.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spark_vision.errors import UnsupportedCheckpointError, in_one_line

# Published files are far below: the largest list 21,000 labels, or the shards of many layers.
MAX_BYTES = 16 * 2**20
# Of the files that hold a vocabulary, which libraries read in full.
MAX_VOCABULARY_BYTES = 256 * 2**20
MAX_DEPTH = 32

_LAYERS, _WIDTH, _COUNT, _PIXELS = 10_000, 2**20, 2**24, 2**40
# Whole numbers by name, and the largest one that any checkpoint could have.
_MOST: Mapping[str, int] = {
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
        ("vocab_size", "max_position_embeddings", "num_position_embeddings", "type_vocab_size"),
        _COUNT,
    ),
    **dict.fromkeys(("shortest_edge", "longest_edge"), _PIXELS),
}


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint.

    Raises:
        UnsupportedCheckpointError: It is no JSON, or larger or deeper than any such file.
    """
    check_size(path, MAX_BYTES)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise _too_deep(path) from None
    except ValueError as error:
        raise UnsupportedCheckpointError(f"{path} is not JSON: {error}") from error


def check_size(path: Path, most: int) -> None:
    """Refuse a file before it is read.

    Raises:
        UnsupportedCheckpointError: It is larger than any such file.
    """
    size = path.stat().st_size
    if size > most:
        raise UnsupportedCheckpointError(
            f"{path} has {size:,} bytes, more than the {most:,} that are read of such a file; is "
            "it another file under its name?"
        )


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of settings: a JSON object whose sizes are sizes.

    Raises:
        UnsupportedCheckpointError: It is none; the message names the file and the setting.
    """
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UnsupportedCheckpointError(f"{path} is a JSON {type(settings).__name__}, no object")
    for name, value in _leaves(path, settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise UnsupportedCheckpointError(f"{path} has {name}={value}; allowed: a finite number")
        most = _MOST.get(name)
        if most is None or value is None or (type(value) is int and 0 <= value <= most):
            continue
        raise UnsupportedCheckpointError(
            f"{path} has {name}={in_one_line(repr(value))}; allowed: a whole number from 0 to "
            f"{most:,}"
        )
    return settings


def _leaves(path: Path, settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give every value that is no container, by the name of the setting that it stands in."""
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
        f"{path} is nested deeper than {MAX_DEPTH} levels, which no settings of a checkpoint are"
    )
