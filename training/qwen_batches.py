"""Packs several conversations about one image into one row, so that the image is computed once.

A row holds what all its conversations begin with (the system's turn and the image's tokens), and
then their questions and answers one after the other. Each of these sees the beginning and itself
only, and has the positions it would have alone: the loss is that of as many separate rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

_BEGINNING, _PADDING = 0, -1


@dataclass(frozen=True)
class Conversation:
    """A question about an image and its answer, as token numbers."""

    question: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class Batch:
    """Rows of `length` tokens, and the images they begin with."""

    pixel_values: Tensor
    """float32, [patches, 2 * 3 * patch_size ** 2]: all images' patches, in the rows' order."""
    image_grid_thw: Tensor
    """int64, [rows, 3]: each image's patches in time, height and width."""
    input_ids: Tensor
    """int64, [rows, length]."""
    position_ids: Tensor
    """int64, [3, rows, length]: in time, height and width."""
    segments: Tensor
    """int64, [rows, length]: 0 where a row begins, then 1, 2, ... for its conversations, and -1
    where it is padded."""
    answers: Tensor
    """bool, [rows, length]: the tokens to be predicted, each from the one before it."""


class Packer:
    """Encodes conversations and packs them into batches."""

    def __init__(self, processor: Qwen2_5_VLProcessor) -> None:
        self._images = processor.image_processor
        self._encode = processor.tokenizer
        user = [{"type": "image"}, {"type": "text", "text": "\0"}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
        )
        beginning, self._after = text.split("\0")
        before, after = beginning.split(processor.image_token)
        self._before_image, self._after_image = self._tokens(before), self._tokens(after)
        self._image_token: int = processor.image_token_id
        self._end: int = processor.tokenizer.eos_token_id

    def conversation(self, question: str, answer: str) -> Conversation:
        """Encode a question with what follows it, and an answer with its end."""
        return Conversation(
            self._tokens(question + self._after), [*self._tokens(answer), self._end]
        )

    def pack(
        self,
        images: Sequence[Image.Image],
        conversations: Sequence[Sequence[Conversation]],
    ) -> Batch:
        """Make a batch of a row per image.

        Args:
            images: Of any size.
            conversations: Those about each image, in the same order.

        Returns:
            The batch.
        """
        pixels = self._images(images=list(images), return_tensors="pt")
        grids = pixels["image_grid_thw"]
        merge = self._images.merge_size
        rows = [
            self._row(int(height) // merge, int(width) // merge, row)
            for (_, height, width), row in zip(grids.tolist(), conversations, strict=True)
        ]
        length = max(len(row.tokens) for row in rows)
        tokens, segments, answers = (
            np.stack([_padded(part, length, fill) for part in parts])
            for parts, fill in (
                ([row.tokens for row in rows], self._end),
                ([row.segments for row in rows], _PADDING),
                ([row.answers for row in rows], 0),
            )
        )
        positions = np.stack([_padded(row.positions, length, 0) for row in rows], axis=1)
        return Batch(
            pixel_values=pixels["pixel_values"],
            image_grid_thw=grids,
            input_ids=torch.from_numpy(tokens),
            position_ids=torch.from_numpy(positions),
            segments=torch.from_numpy(segments),
            answers=torch.from_numpy(answers.astype(bool)),
        )

    def _row(self, height: int, width: int, conversations: Sequence[Conversation]) -> "_Row":
        before, after = len(self._before_image), len(self._after_image)
        image_tokens = [self._image_token] * (height * width)
        tokens = [*self._before_image, *image_tokens, *self._after_image]
        grid = np.indices((1, height, width)).reshape(3, -1) + before
        start = before + max(height, width)
        positions = [
            np.tile(np.arange(before), (3, 1)),
            grid,
            np.tile(np.arange(start, start + after), (3, 1)),
        ]
        start += after
        segments, answers = [_BEGINNING] * len(tokens), [0] * len(tokens)
        for segment, conversation in enumerate(conversations, _BEGINNING + 1):
            part = [*conversation.question, *conversation.answer]
            tokens += part
            segments += [segment] * len(part)
            answers += [0] * len(conversation.question) + [1] * len(conversation.answer)
            positions.append(np.tile(np.arange(start, start + len(part)), (3, 1)))
        return _Row(np.array(tokens), np.array(segments), np.array(answers), np.hstack(positions))

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._encode(text).input_ids
        return ids


def attention_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to each token's attention to each other, [rows, 1, length, length].

    A token sees those before it that are in its own conversation or in the row's beginning.
    """
    same = segments[:, :, None] == segments[:, None, :]
    seen = (same | (segments[:, None, :] == _BEGINNING)).tril()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[:, None]


def answer_logits(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict the answers' tokens.

    Args:
        model: With eager attention.
        batch: The rows.
        features: Their images' tokens, [all images' tokens, width], in the rows' order.

    Returns:
        Their logits, [answers' tokens, vocabulary], and the tokens, int64.
    """
    embeddings = model.get_input_embeddings()(batch.input_ids)
    image = (batch.input_ids == model.config.image_token_id)[:, :, None]
    embeddings = embeddings.masked_scatter(image, features.to(embeddings.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask={"full_attention": attention_mask(batch.segments, features.dtype)},
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[:, :-1][batch.answers[:, 1:]]), batch.input_ids[batch.answers]


@dataclass(frozen=True)
class _Row:
    tokens: np.ndarray
    segments: np.ndarray
    answers: np.ndarray
    positions: np.ndarray


def _padded(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    room = [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])]
    return np.pad(values, room, constant_values=fill)
