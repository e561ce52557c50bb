"""Tokenizes prompts with the checkpoint's chat template, with a placeholder for the image.

A prompt is always plain text: a control token spelled out in it, such as `<|im_start|>`, is encoded
as its characters.
"""

import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from spark_vision.errors import RowFailure, Status, UnsupportedCheckpointError

# Replaces the prompt when the template is split; uses private-use characters, which no template
# contains.
_PLACEHOLDER = "\ue0f0prompt\ue0f1"
_KEPT_PROMPT_COUNT = 256
# Longer prompts rarely repeat, and their tokens would take memory.
_KEPT_CHARACTER_COUNT = 4096


class ChatPrompts:
    """Encodes prompts; thread-safe.

    Args:
        processor: The checkpoint's transformers processor, with a chat template.
        folder: The checkpoint's folder, for messages.

    Raises:
        UnsupportedCheckpointError: There is no chat template, or it has no place for an image.
    """

    def __init__(self, processor: Any, folder: str) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._image_token_id = int(processor.image_token_id)
        added = self._tokenizer.get_added_vocab()
        self._control_ids = frozenset(added.values())
        # A single character cannot be split, and is not a control token.
        names = sorted((name for name in added if len(name) > 1), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        # The tokenizers of transformers are not thread-safe.
        self._lock = threading.Lock()
        try:
            self._head, self._tail = self._render(_PLACEHOLDER).split(_PLACEHOLDER)
            self.split("x")
        except Exception as error:
            raise UnsupportedCheckpointError(
                f"{folder} has no chat template that takes an image and a prompt: {error}"
            ) from error
        self._split_kept = lru_cache(maxsize=_KEPT_PROMPT_COUNT)(self.split)

    def encode(self, prompt: str, image_token_count: int) -> list[int]:
        """Encode one prompt with one image.

        Args:
            prompt: Any text.
            image_token_count: Number of image tokens.

        Raises:
            RowFailure: `bad_prompt` if control tokens in it cannot be neutralized.
        """
        split = self._split_kept if len(prompt) <= _KEPT_CHARACTER_COUNT else self.split
        before, after = split(prompt)
        return [*before, *[self._image_token_id] * image_token_count, *after]

    def split(self, prompt: str) -> tuple[list[int], list[int]]:
        """Encode the text before and after the image.

        Raises:
            RowFailure: `bad_prompt` if control tokens in it cannot be neutralized.
        """
        with self._lock:
            if self._control.search(prompt):
                ids = self._encode(self._head)
                for piece in self._harmless_pieces(prompt):
                    ids += self._encode_text(piece)
                ids += self._encode(self._tail, is_start=False)
            else:
                ids = self._encode(self._render(prompt))
        if ids.count(self._image_token_id) != 1:
            raise RowFailure(Status.BAD_PROMPT, "the prompt has a control token for images")
        place = ids.index(self._image_token_id)
        return ids[:place], ids[place + 1 :]

    def _render(self, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        rendered: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return rendered

    def _harmless_pieces(self, prompt: str) -> Iterator[str]:
        """Split a prompt after the first character of each control token that it spells out."""
        start = 0
        while found := self._control.search(prompt, start):
            yield prompt[start : found.start() + 1]
            start = found.start() + 1
        if start < len(prompt):
            yield prompt[start:]

    def _encode(self, text: str, *, is_start: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=is_start)["input_ids"]
        return ids

    def _encode_text(self, piece: str) -> list[int]:
        ids = self._encode(piece, is_start=False)
        if not self._control_ids.isdisjoint(ids):
            raise RowFailure(Status.BAD_PROMPT, "the prompt has a control token")
        return ids
