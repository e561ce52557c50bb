"""The files in a checkpoint's folder, in Hugging Face's layout: which there are, what they say.

It never loads weights, and imports neither torch nor transformers.
"""

import hashlib
import json
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from spark_vision.errors import InvalidOptionError, UnsupportedCheckpointError
from spark_vision.models.config_files import (
    MAX_VOCABULARY_BYTES,
    check_size,
    read_config,
    read_json,
)
from spark_vision.operators import Operator, reads_images
from spark_vision.operators.options import FrozenMapping

CONFIG_FILE = "config.json"
# The first of these that is present has the weights; an index lists its shards.
SAFETENSORS_FILES = ("model.safetensors", "model.safetensors.index.json")
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# The first bytes of a zip archive written by torch, and of a pickle of protocol 2 to 5.
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# Files that affect how a generative model is prompted, and when it stops.
CHAT_FILES = (
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "video_preprocessor_config.json",
)
# The common settings of Hugging Face's image processors that affect pixels; not device, tensor
# format and grouping.
COMMON_SETTINGS = (
    "crop_size",
    "default_to_square",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_pad",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "pad_size",
    "resample",
    "rescale_factor",
    "size",
)
_NOT_SETTINGS = frozenset(
    ("auto_map", "feature_extractor_type", "image_processor_type", "processor_class")
)
MIB = 2**20
SAMPLE_COUNT = 64
SAMPLE_BYTES = 16 * 2**10
# The pickles in torch's file format before 1.6: magic number, protocol, system, weights.
_LEGACY_PICKLE_COUNT = 4


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model's configuration and weights.

    Attributes:
        folder: Its folder on this host.
        model_type: The `model_type` in its config.json.
        config: The content of its config.json.
    """

    folder: Path
    model_type: str
    config: Mapping[str, Any]


def open_folder(folder: Path) -> Checkpoint:
    """Read the configuration of a checkpoint.

    Raises:
        UnsupportedCheckpointError: config.json has no model_type or has invalid sizes, or another
            file is too large for its name.
    """
    path = folder / CONFIG_FILE
    config = read_config(path)
    for name in (*PROCESSOR_FILES, *TOKENIZER_FILES, *CHAT_FILES):
        if (folder / name).is_file():
            check_size(folder / name, MAX_VOCABULARY_BYTES)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnsupportedCheckpointError(
            f"{path} has no model_type, so this is not a checkpoint in the layout of "
            "Hugging Face transformers"
        )
    return Checkpoint(folder, model_type, FrozenMapping(config))


def missing_files(folder: Path, operator: Operator) -> list[str]:
    """List the files that an operator needs and a folder lacks, for a message."""
    missing = []
    if not (folder / CONFIG_FILE).is_file():
        missing.append(CONFIG_FILE)
    weights = first_existing(folder, SAFETENSORS_FILES + PICKLE_FILES)
    if weights is None:
        missing.append(f"weights ({SAFETENSORS_FILES[0]} or {PICKLE_FILES[0]})")
    else:
        missing += [path.name for path in _shards(weights) if not path.is_file()]
    if reads_images(operator) and first_existing(folder, PROCESSOR_FILES) is None:
        missing.append(f"an image processor ({' or '.join(PROCESSOR_FILES)})")
    has_texts = "text" in operator.reads or "prompt" in operator.reads
    if (has_texts or operator.class_texts) and first_existing(folder, VOCABULARY_FILES) is None:
        missing.append(f"a tokenizer ({', '.join(VOCABULARY_FILES)})")
    return missing


def first_existing(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first of the files that exists in the folder."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def check_overrides(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> None:
    """Reject settings that the checkpoint's image processor does not have.

    Raises:
        InvalidOptionError: A setting is unknown; the message lists the allowed ones.
        UnsupportedCheckpointError: The processor's file cannot be read.
    """
    allowed = sorted({*COMMON_SETTINGS, *_own_settings(checkpoint)} - _NOT_SETTINGS)
    unknown = [name for name in overrides if name not in allowed]
    if unknown:
        raise InvalidOptionError(
            f"image_processor_kwargs got {unknown[0]!r}, which the image processor of "
            f"{checkpoint.folder} does not have; allowed: {', '.join(allowed)}"
        )


def _own_settings(checkpoint: Checkpoint) -> set[str]:
    names: set[str] = set()
    for file_name in PROCESSOR_FILES:
        path = checkpoint.folder / file_name
        if path.is_file():
            try:
                settings = read_config(path)
                names |= settings.get("image_processor", settings).keys()
            except AttributeError as error:
                raise UnsupportedCheckpointError(
                    f"{path} has no image processor settings"
                ) from error
    return names


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """List the weight files: a single one, or the shards of an index.

    Raises:
        UnsupportedCheckpointError: There are no weights, or an index cannot be read.
    """
    weights = first_existing(checkpoint.folder, SAFETENSORS_FILES + PICKLE_FILES)
    if weights is None:
        raise UnsupportedCheckpointError(f"{checkpoint.folder} has no weights")
    return _shards(weights)


def weight_names(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names of a checkpoint's weights from the files' headers, without reading weights.

    A pickled file is scanned for strings, never unpickled. So some of the result may not be names
    of weights.

    Raises:
        UnsupportedCheckpointError: A header cannot be read.
    """
    return frozenset().union(*map(_weight_names, weight_files(checkpoint)))


def check_headers(checkpoint: Checkpoint) -> None:
    """Check the headers of safetensors files, before a library opens them.

    Raises:
        UnsupportedCheckpointError: A header cannot be read.
    """
    for path in weight_files(checkpoint):
        if path.suffix == ".safetensors":
            _weight_names(path)


def _weight_names(path: Path) -> set[str]:
    try:
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                return set(dict(json.loads(read_safetensors_header(file))))
            return _pickled_texts(file)
    except (
        *(ValueError, TypeError, LookupError, RecursionError),
        *(OSError, zipfile.BadZipFile),
    ) as error:
        raise UnsupportedCheckpointError(f"cannot read the header of {path}: {error}") from error


def read_safetensors_header(file: IO[bytes]) -> bytes:
    """Read the JSON that a safetensors file starts with.

    Raises:
        ValueError: The file is not in this format, or is truncated.
    """
    start = file.read(9)
    # The length can look like the start of a pickle, but a JSON object always follows it.
    if start.startswith(PICKLE_STARTS) and start[8:] != b"{":
        raise ValueError(
            "it is a pickle with the extension of another format; save the weights as safetensors, "
            f"or rename the file to {PICKLE_FILES[0]}"
        )
    file.seek(8)
    size = int.from_bytes(start[:8], "little")
    # The length is untrusted: it must not determine how much memory is allocated.
    if size > 100_000_000:
        raise ValueError(f"its header would be {size} bytes long")
    header = file.read(size)
    if not header or len(header) < size:
        raise ValueError("the file is truncated")
    return header


def _shards(weights: Path) -> list[Path]:
    if not weights.name.endswith(".index.json"):
        return [weights]
    try:
        names = sorted(set(read_json(weights)["weight_map"].values()))
    except (LookupError, TypeError, AttributeError) as error:
        raise UnsupportedCheckpointError(f"{weights} is not an index of weights") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UnsupportedCheckpointError(f"{weights} lists files outside its folder")
    return [weights.parent / name for name in names]


def _pickled_texts(file: IO[bytes]) -> set[str]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            pickled = [name for name in archive.namelist() if name.endswith("data.pkl")]
            with archive.open(pickled[0]) as stream:
                return _texts_of(stream)
    file.seek(0)
    return set().union(*(_texts_of(file) for _ in range(_LEGACY_PICKLE_COUNT)))


def _texts_of(stream: IO[bytes]) -> set[str]:
    return {value for _, value, _ in pickletools.genops(stream) if isinstance(value, str)}


def fingerprint(checkpoint: Checkpoint) -> str:
    """Compute a fingerprint of a checkpoint from the contents of its files.

    Configuration, processor, tokenizer, chat template and generation settings are hashed in full.
    Of a weight file it hashes the size, the safetensors header, the first and last MiB, and 64
    evenly spaced samples of 16 KiB; a smaller file is hashed in full. Training changes nearly every
    byte, so a further trained model gets another fingerprint; an edit of a few bytes between the
    samples does not change it. File names count; the folder's name, dates and permissions do not.

    Returns:
        64 hexadecimal digits (SHA-256).

    Raises:
        UnsupportedCheckpointError: The checkpoint has no weights, or their header cannot be read.
    """
    check_headers(checkpoint)
    names = (CONFIG_FILE, *PROCESSOR_FILES, *TOKENIZER_FILES, *CHAT_FILES)
    small = [path for name in names if (path := checkpoint.folder / name).is_file()]
    weights = weight_files(checkpoint)
    digest = hashlib.sha256()
    for path in sorted({*small, *weights}, key=lambda path: path.name):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        for chunk in _sampled(path) if path in weights else _whole(path):
            digest.update(chunk)
    return digest.hexdigest()


def _whole(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            yield chunk


def _sampled(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    if size <= 2 * MIB + SAMPLE_COUNT * SAMPLE_BYTES:
        yield from _whole(path)
        return
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            yield read_safetensors_header(file)
        starts = [MIB + index * (size - 2 * MIB) // SAMPLE_COUNT for index in range(SAMPLE_COUNT)]
        for start, length in [
            (0, MIB),
            *((at, SAMPLE_BYTES) for at in starts),
            (size - MIB, MIB),
        ]:
            file.seek(start)
            yield file.read(length)
