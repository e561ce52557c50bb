"""Computes the fingerprint of a checkpoint, cheap even for files of many GB."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from spark_vision.models.checkpoint_files import (
    CHAT_FILES,
    CONFIG_FILE,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    Checkpoint,
    check_headers,
    read_safetensors_header,
    weight_files,
)

MIB = 2**20
SAMPLE_COUNT = 64
SAMPLE_BYTES = 16 * 2**10


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
        for start, length in [(0, MIB), *((at, SAMPLE_BYTES) for at in starts), (size - MIB, MIB)]:
            file.seek(start)
            yield file.read(length)
