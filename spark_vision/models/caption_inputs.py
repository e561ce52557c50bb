"""Prepares the inputs of a Qwen-VL model from images and prompts: uint8 patches and token ids.

Sizes follow the checkpoint's own processor (`smart_resize`): both sides a multiple of the merged
patch size, the number of pixels within bounds, the aspect ratio kept as closely as possible.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torchvision.transforms.v2.functional import resize_image

from spark_vision.errors import InvalidOptionError, RowFailure, Status, UnsupportedCheckpointError
from spark_vision.models.chat_prompts import ChatPrompts
from spark_vision.models.checkpoint_files import Checkpoint
from spark_vision.models.preprocessing import interpolation_of, scaling_of
from spark_vision.models.protocols import CaptionBatch, CaptionInput, GeneratedTokens
from spark_vision.operators import (
    MAX_ASPECT_RATIO,
    MAX_PROMPT_CHARACTERS,
    QwenVLImageUnderstanding,
)


def load_caption_preprocessor(
    checkpoint: Checkpoint, operator: QwenVLImageUnderstanding
) -> "QwenVLInputs":
    """Load the processor of a Qwen-VL checkpoint.

    Raises:
        InvalidOptionError: `min_pixels` or `max_pixels` contradicts the checkpoint's other bound.
        UnsupportedCheckpointError: The processor cannot be loaded, or is not supported.
    """
    from transformers import AutoConfig, AutoProcessor

    factory: Any = AutoProcessor
    folder = str(checkpoint.folder)
    try:
        processor = factory.from_pretrained(
            folder, backend="torchvision", local_files_only=True, trust_remote_code=False
        )
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UnsupportedCheckpointError(
            f"cannot load the processor of {folder}: {error}"
        ) from error
    return QwenVLInputs(
        processor, operator, folder, int(config.get_text_config().max_position_embeddings)
    )


class QwenVLInputs:
    """Converts images with prompts into a model's inputs, and its tokens into text.

    Args:
        processor: The checkpoint's transformers processor.
        operator: For its sizes and its sampling seed.
        folder: The checkpoint's folder, for messages.
        context_length: Maximum tokens of the model's context.
    """

    def __init__(
        self,
        processor: Any,
        operator: QwenVLImageUnderstanding,
        folder: str,
        context_length: int,
    ) -> None:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        images = processor.image_processor
        interpolation = interpolation_of(images.resample)
        if interpolation is None or not images.do_resize:
            raise UnsupportedCheckpointError(
                f"the image processor of {folder} resizes in a way that is not supported"
            )
        self.scaling = scaling_of(images)
        self._interpolation = interpolation
        self._patch_size = int(images.patch_size)
        self._merge_size = int(images.merge_size)
        self._operator = operator
        self._context_length = context_length
        self._prompts = ChatPrompts(processor, folder)
        self._tokenizer = processor.tokenizer
        # Any token works, as padding is masked.
        self._pad_token_id = int(self._tokenizer.pad_token_id or 0)
        size = dict(images.size)
        min_pixels = operator.min_pixels or int(size["shortest_edge"])
        max_pixels = operator.max_pixels or int(size["longest_edge"])
        if min_pixels > max_pixels:
            raise InvalidOptionError(
                f"{type(operator).__name__}.min_pixels got {operator.min_pixels} and max_pixels "
                f"got {operator.max_pixels}, but those of {folder} are {size['shortest_edge']} and "
                f"{size['longest_edge']}; set both"
            )
        self._resized_size = partial(
            smart_resize,
            factor=self._patch_size * self._merge_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )

    def prepare(self, image: torch.Tensor, prompt: str) -> CaptionInput:
        """Resize one image, split it into patches, and tokenize its prompt.

        Raises:
            RowFailure: `bad_dimensions`: the image is over 200 times as long as wide, or takes
                more tokens than the model's context; `bad_prompt`: the prompt takes more tokens
                than that, or has over 131,072 characters.
        """
        rows, columns = self._grid_of(*image.shape[1:])
        image_token_count = rows * columns // self._merge_size**2
        token_ids = self._encode(prompt, image_token_count)
        height, width = rows * self._patch_size, columns * self._patch_size
        resized = resize_image(image, [height, width], interpolation=self._interpolation)
        patches = self._cut(resized, rows, columns)
        seed = self._seed(patches, token_ids) if self._operator.do_sample else 0
        return CaptionInput(torch.tensor(token_ids), patches, (1, rows, columns), seed)

    def collate(self, inputs: Sequence[CaptionInput]) -> CaptionBatch:
        """Pad the inputs on the left to one length, and concatenate their patches."""
        longest = max(len(each.token_ids) for each in inputs)
        token_ids = torch.full((len(inputs), longest), self._pad_token_id)
        attention_mask = torch.zeros_like(token_ids)
        for row, each in enumerate(inputs):
            token_ids[row, longest - len(each.token_ids) :] = each.token_ids
            attention_mask[row, longest - len(each.token_ids) :] = 1
        return CaptionBatch(
            token_ids=token_ids,
            attention_mask=attention_mask,
            patches=torch.cat([each.patches for each in inputs]),
            grids=torch.tensor([each.grid for each in inputs]),
            seeds=torch.tensor([each.seed for each in inputs]),
        )

    def decode(self, generated: GeneratedTokens) -> list[str]:
        """Decode each row's tokens to text, without control tokens."""
        rows = zip(generated.token_ids.tolist(), generated.lengths.tolist(), strict=True)
        texts: list[str] = self._tokenizer.batch_decode(
            [ids[:length] for ids, length in rows],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return texts

    def _grid_of(self, height: int, width: int) -> tuple[int, int]:
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise RowFailure(
                Status.BAD_DIMENSIONS,
                f"its {width}×{height} pixels are over {MAX_ASPECT_RATIO} times as long as wide",
            )
        fixed_height, fixed_width = self._operator.resized_height, self._operator.resized_width
        if fixed_height is not None and fixed_width is not None:
            height, width = fixed_height, fixed_width
        resized_height, resized_width = self._resized_size(height, width)
        return resized_height // self._patch_size, resized_width // self._patch_size

    def _encode(self, prompt: str, image_token_count: int) -> list[int]:
        if image_token_count >= self._context_length:
            raise self._too_long(Status.BAD_DIMENSIONS, "image", image_token_count)
        # Characters first, because tokenizing a long text takes seconds and much memory.
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise RowFailure(
                Status.BAD_PROMPT,
                f"the prompt has {len(prompt):,} characters, more than the "
                f"{MAX_PROMPT_CHARACTERS:,} allowed",
            )
        token_ids = self._prompts.encode(prompt, image_token_count)
        if len(token_ids) >= self._context_length:
            alone = len(self._prompts.encode("", image_token_count))
            if alone >= self._context_length:
                raise self._too_long(Status.BAD_DIMENSIONS, "image", alone)
            raise self._too_long(Status.BAD_PROMPT, "prompt with its image", len(token_ids))
        return token_ids

    def _too_long(self, status: Status, what: str, count: int) -> RowFailure:
        return RowFailure(
            status, f"the {what} takes {count} tokens, but the context is {self._context_length}"
        )

    def _cut(self, image: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Split an image into patches, ordered so that those that the model merges are adjacent."""
        merge, patch = self._merge_size, self._patch_size
        squares = image.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
        return squares.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 3, patch, patch)

    def _seed(self, patches: torch.Tensor, token_ids: list[int]) -> int:
        """Derive a seed from the operator's seed and the model's input for the row."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(f"{self._operator.seed} {token_ids}".encode())
        digest.update(patches.numpy().tobytes())
        return int.from_bytes(digest.digest(), "little") >> 1
