"""The tokenizer of a checkpoint with texts, padded and truncated as its model was trained."""

from importlib.util import find_spec
from typing import Any

import torch

from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import Checkpoint

# So many characters of a text are looked at for each token that the model takes: more than the
# longest tokens of published vocabularies hold. The tokens are those of the whole text, but where
# tokens are fewer by far: after thousands of spaces or punctuation marks that a tokenizer drops, or
# of letters that it does not know.
CHARACTERS_PER_TOKEN = 256


class Tokenizer:
    """Turns texts into token ids.

    Args:
        tokenizer: The checkpoint's own, of transformers.
        max_length: Most tokens that the model takes.
        pad_to_max_length: Whether the model was trained on texts of one length only.
        lower_case: Whether the model was trained on lower case that its tokenizer does not make.
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
        """Tokenize a batch; longer texts are truncated, huge ones before they cost anything.

        Returns:
            int64 `[texts, tokens]` tensors by the names that the model's text tower takes.
        """
        texts = [text[: self._max_characters] for text in texts]
        encoded = self._tokenizer(
            [text.lower() for text in texts] if self._lower_case else texts,
            padding=self._padding,
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        )
        return dict(encoded)


def load(checkpoint: Checkpoint) -> Tokenizer:
    """Load the tokenizer of a CLIP, Chinese-CLIP or SigLIP checkpoint.

    Raises:
        UnsupportedCheckpointError: It cannot be loaded; the message says why.
    """
    from transformers import AutoTokenizer

    siglip = checkpoint.model_type == "siglip"
    if siglip and (checkpoint.folder / "spiece.model").is_file() and not find_spec("sentencepiece"):
        # Without it transformers may take another tokenizer, which gives other tokens.
        raise UnsupportedCheckpointError(
            f"the tokenizer of {checkpoint.folder} needs the package sentencepiece, which is not "
            "installed; pip install sentencepiece on every host"
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
    default_length = {"clip": 77, "chinese_clip": 512, "siglip": 64}[checkpoint.model_type]
    position_count = text_config.get("max_position_embeddings") or default_length
    return Tokenizer(
        tokenizer,
        max_length=min(position_count, tokenizer.model_max_length),
        pad_to_max_length=siglip,
        # SigLIP 2 was trained on lower case, and its published tokenizer (Gemma's) keeps case.
        lower_case=siglip and type(tokenizer).__name__ != "SiglipTokenizer",
    )
