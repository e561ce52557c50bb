"""The tokenizer of a CLIP-like checkpoint, with padding and truncation as in training."""

from importlib.util import find_spec
from typing import Any

import torch

from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import Checkpoint
from spark_vision.models.families import SIGLIP

# Long texts are cut at this many characters per token of the context: more than the longest tokens
# of published vocabularies have. This changes the result only for texts with thousands of
# characters that a tokenizer drops or does not know.
CHARACTERS_PER_TOKEN = 256


class Tokenizer:
    """Tokenizes texts for a model's text tower.

    Args:
        tokenizer: The checkpoint's transformers tokenizer.
        max_length: Maximum tokens of the model's context.
        pad_to_max_length: Whether the model was trained on texts of one length only.
        lower_case: Whether the model was trained on lower case, but its tokenizer keeps case.
    """

    def __init__(
        self, tokenizer: Any, *, max_length: int, pad_to_max_length: bool, lower_case: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._max_characters = CHARACTERS_PER_TOKEN * max_length
        self._padding = "max_length" if pad_to_max_length else "longest"
        self._lower_case = lower_case

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Tokenize a batch; very long texts are cut before tokenizing."""
        encoded = self._tokenizer(
            self._fold([text[: self._max_characters] for text in texts]),
            padding=self._padding,
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        )
        return dict(encoded)

    def find_truncated(self, texts: list[str]) -> list[str]:
        """Return the texts that have more tokens than the model's context."""
        encoded = self._tokenizer(self._fold(texts), verbose=False)["input_ids"]
        lengths = map(len, encoded)
        return [
            text
            for text, length in zip(texts, lengths, strict=True)
            if length > self._max_length or len(text) > self._max_characters
        ]

    def _fold(self, texts: list[str]) -> list[str]:
        return [text.lower() for text in texts] if self._lower_case else texts


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Load the tokenizer of a CLIP, Chinese-CLIP, SigLIP or SigLIP 2 checkpoint.

    Raises:
        UnsupportedCheckpointError: It cannot be loaded; the message has the reason.
    """
    from transformers import AutoTokenizer

    siglip = checkpoint.model_type in SIGLIP
    if siglip and (checkpoint.folder / "spiece.model").is_file() and not find_spec("sentencepiece"):
        # Without it transformers may use another tokenizer, with different tokens.
        raise UnsupportedCheckpointError(
            f"the tokenizer of {checkpoint.folder} needs the sentencepiece package, which is not "
            "installed; run pip install sentencepiece on every host"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(checkpoint.folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise UnsupportedCheckpointError(
            f"cannot load the tokenizer of {checkpoint.folder}: {error}"
        ) from error
    text_config = checkpoint.config.get("text_config") or {}
    default_length = 64 if siglip else {"clip": 77, "chinese_clip": 512}[checkpoint.model_type]
    position_count = text_config.get("max_position_embeddings") or default_length
    return Tokenizer(
        tokenizer,
        max_length=min(position_count, tokenizer.model_max_length),
        pad_to_max_length=siglip,
        # SigLIP 2 was trained on lower case, and its published tokenizer may be loaded as Gemma's,
        # which keeps case.
        lower_case=siglip and not type(tokenizer).__name__.startswith("Siglip"),
    )
