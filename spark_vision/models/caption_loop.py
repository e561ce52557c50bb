"""Continuous batching: rows enter the decoding loop as others end, so that its steps stay full.

A step of the loop is one forward pass: of the prompts of rows that enter, or of the newest token of
every row within. The keys and values of all rows are in one cache, which a row leaves when it ends.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from spark_vision.models.protocols import CaptionBatch, GeneratedTokens, GenerationSettings
from spark_vision.models.row_tensors import RowTensors
from spark_vision.models.token_choice import RowChoice, TokenChoice, stop_tokens

MAX_ROW_COUNT = 64
# Of the cache, at the length that its longest row may reach. 4 GB are 48 rows of a megapixel and
# 256 tokens each in a model of 7 billion parameters.
MAX_CACHE_BYTES = {"cpu": 2**30, "cuda": 4 * 2**30}
# Of the prompts in one forward pass, with their padding; a longer prompt enters alone.
MAX_PROMPT_TOKENS = 8192


class EndedRow(NamedTuple):
    """A row that has left the loop.

    Attributes:
        number: The number that `CaptionLoop.add` gave it.
        token_ids: The generated tokens, with the stop token.
        length: How many of them are the text.
        truncated: Whether the text was truncated at `max_new_tokens`.
        finite: False if the model returned NaN or infinity, which ends a row.
        error: The error of the model; such a row has no text.
    """

    number: int
    token_ids: Sequence[int] = ()
    length: int = 0
    truncated: bool = False
    finite: bool = True
    error: Exception | None = None


@dataclass
class _Row:
    number: int
    prompt: torch.Tensor
    patches: torch.Tensor
    grid: torch.Tensor
    seed: int
    enters_alone: bool = False
    choice: RowChoice = field(init=False)
    new_ids: list[int] = field(default_factory=list)
    is_finite: bool = True

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.new_ids)


class CaptionLoop:
    """Generates texts about images, for rows that may enter at any time.

    A server adds rows whenever a client sends some, and calls `step` while there are any:

        >>> loop = model.start_loop(scaling, settings)
        >>> numbers = loop.add(batch)
        >>> while len(loop):
        ...     for row in loop.step():
        ...         print(row.number, row.token_ids)

    A row's text does not depend on other rows, except for rounding errors. If memory runs out, the
    rows of the failed pass start again, and fewer are within at a time until the loop is empty. A
    loop stores nothing in the model, and is used by one thread at a time.

    Args:
        model: A Qwen-VL of transformers, with its generation_config.
        settings: How to generate each text of this loop.
        pixel_values: Converts uint8 patches to the model's input.
        max_row_count: Maximum number of rows in a step.
        max_cache_bytes: Maximum size of the cache of several rows; none: by device.
    """

    def __init__(
        self,
        model: Any,
        settings: GenerationSettings,
        pixel_values: Callable[[torch.Tensor], torch.Tensor],
        *,
        max_row_count: int = MAX_ROW_COUNT,
        max_cache_bytes: int | None = None,
    ) -> None:
        self._model = model
        self._pixel_values = pixel_values
        self._max_new_tokens = settings.max_new_tokens
        self._choice = TokenChoice(model, settings)
        self._stops = frozenset(stop_tokens(model.generation_config))
        self._is_end_forced = model.generation_config.forced_eos_token_id is not None
        self._max_row_count = self._row_limit = max_row_count
        cache_bytes = max_cache_bytes or MAX_CACHE_BYTES[model.device.type]
        self._max_cached_tokens = cache_bytes // _token_bytes(model)
        self._added_count = 0
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []
        # None if there are no rows, and while a change to it may fail.
        self._tensors: RowTensors | None = None

    def __len__(self) -> int:
        """Return how many rows have not ended."""
        return len(self._waiting) + len(self._rows)

    def add(self, batch: CaptionBatch) -> list[int]:
        """Add rows, and return their numbers, which are unique in this loop."""
        if not len(self):
            self._row_limit = self._max_row_count
        first = self._added_count
        for token_ids, mask, patches, grid, seed in zip(
            batch.token_ids,
            batch.attention_mask,
            torch.split(batch.patches, batch.grids.prod(dim=1).tolist()),
            batch.grids,
            batch.seeds.tolist(),
            strict=True,
        ):
            prompt = token_ids[mask.bool()]
            self._waiting.append(_Row(self._added_count, prompt, patches, grid, seed))
            self._added_count += 1
        return list(range(first, self._added_count))

    def drop(self, numbers: Sequence[int]) -> None:
        """Remove rows that have not entered yet; others go on."""
        self._waiting = deque(row for row in self._waiting if row.number not in numbers)

    @torch.inference_mode()
    def step(self) -> list[EndedRow]:
        """Compute one forward pass, and return the rows that end with it.

        An error ends the row whose prompt is at fault, or all rows of a pass of newest tokens.

        Raises:
            torch.AcceleratorError: The device is broken.
        """
        entering = self._take_entering()
        try:
            if entering:
                self._enter(entering)
            elif self._tensors is not None:
                self._decode(self._tensors)
            return self._remove_ended()
        except torch.AcceleratorError:
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            # The traceback would keep the tensors of the failed pass alive.
            failure: Exception = error.with_traceback(None)
        except Exception as error:
            failure = error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._recover(entering, failure)

    def _take_entering(self) -> list[_Row]:
        """Take the waiting rows that enter now, oldest first."""
        entering: list[_Row] = []
        longest = max((len(row.prompt) for row in self._rows), default=0)
        longest_entering = 0
        while self._waiting:
            row = self._waiting[0]
            longest = max(longest, len(row.prompt))
            longest_entering = max(longest_entering, len(row.prompt))
            count = len(self._rows) + len(entering) + 1
            is_full = count > 1 and (
                count > self._row_limit
                or count * (longest + self._max_new_tokens) > self._max_cached_tokens
            )
            is_pass_full = entering and (
                row.enters_alone
                or entering[-1].enters_alone
                or (len(entering) + 1) * longest_entering > MAX_PROMPT_TOKENS
            )
            if is_full or is_pass_full:
                break
            entering.append(self._waiting.popleft())
        return entering

    def _enter(self, entering: list[_Row]) -> None:
        """Compute the prompts of rows and their first tokens."""
        device = self._model.device
        prompts = [row.prompt for row in entering]
        masks = [torch.ones_like(prompt) for prompt in prompts]
        token_ids = pad_sequence(prompts, batch_first=True, padding_side="left")
        mask = pad_sequence(masks, batch_first=True, padding_side="left")
        # The padding is the last token of a row, which is no image token.
        token_ids = torch.where(mask == 1, token_ids, token_ids[:, -1:])
        grids = torch.stack([row.grid for row in entering])
        is_image = token_ids == self._model.config.image_token_id
        positions, _ = self._model.model.get_rope_index(
            token_ids, mm_token_type_ids=is_image.int(), image_grid_thw=grids, attention_mask=mask
        )
        positions = positions.to(device)
        tensors = RowTensors(
            token_ids.to(device), mask.to(device), positions[:, :, -1:], RowTensors.new_cache()
        )
        logits = self._model(
            input_ids=tensors.texts,
            attention_mask=tensors.mask,
            position_ids=positions,
            pixel_values=self._pixel_values(torch.cat([row.patches for row in entering])),
            image_grid_thw=grids.to(device),
            past_key_values=tensors.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        for row in entering:
            row.choice = self._choice.start(row.prompt, row.seed)
            row.new_ids = []
        self._append_tokens(entering, tensors, logits)
        if self._tensors is not None:
            within, self._tensors = self._tensors, None
            within.join(tensors)
            tensors = within
        self._rows += entering
        self._tensors = tensors

    def _decode(self, tensors: RowTensors) -> None:
        """Compute the newest tokens of all rows, and their next tokens."""
        self._tensors = None
        logits = self._model(
            input_ids=tensors.texts[:, -1:],
            attention_mask=tensors.mask,
            position_ids=tensors.positions,
            past_key_values=tensors.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self._append_tokens(self._rows, tensors, logits)
        self._tensors = tensors

    def _append_tokens(self, rows: list[_Row], tensors: RowTensors, logits: torch.Tensor) -> None:
        width = tensors.texts.shape[1]
        tokens, finite = self._choice.choose(
            [row.choice for row in rows],
            tensors.texts,
            [width - row.length for row in rows],
            logits[:, -1].float(),
        )
        for row, token, is_finite in zip(rows, tokens, finite, strict=True):
            row.new_ids.append(token)
            row.is_finite = is_finite
        tensors.append(tokens)

    def _remove_ended(self) -> list[EndedRow]:
        ended, places = [], []
        for place, row in enumerate(self._rows):
            is_stopped = row.new_ids[-1] in self._stops
            length = len(row.new_ids) - is_stopped
            is_at_end = len(row.new_ids) == self._max_new_tokens
            if not (is_stopped or is_at_end) and row.is_finite:
                places.append(place)
                continue
            # A stop token at the last position may have been forced.
            truncated = not is_stopped or (is_at_end and self._is_end_forced)
            ended.append(EndedRow(row.number, row.new_ids, length, truncated, row.is_finite))
        if ended and self._tensors is not None:
            tensors, self._tensors = self._tensors, None
            kept = [self._rows[place] for place in places]
            if kept:
                tensors.keep(places, max(row.length for row in kept))
                self._tensors = tensors
            self._rows = kept
        return ended

    def _recover(self, entering: list[_Row], error: Exception) -> list[EndedRow]:
        everyone = {row.number: row for row in self._rows + entering}
        lost, count = entering, len(everyone)
        if self._tensors is None:
            lost, self._rows = list(everyone.values()), []
        if isinstance(error, torch.OutOfMemoryError | MemoryError) and count > 1:
            self._row_limit = count // 2
        elif len(entering) > 1:
            for row in entering:
                row.enters_alone = True
        else:
            return [EndedRow(row.number, error=error) for row in lost]
        self._waiting.extendleft(reversed(lost))
        return []


def join_rows(rows: Sequence[EndedRow]) -> GeneratedTokens:
    """Join the results of rows, padded with zeros."""
    return GeneratedTokens(
        token_ids=pad_sequence([torch.tensor(row.token_ids) for row in rows], batch_first=True),
        lengths=torch.tensor([row.length for row in rows]),
        truncated=torch.tensor([row.truncated for row in rows]),
        finite=torch.tensor([row.finite for row in rows]),
    )


def _token_bytes(model: Any) -> int:
    """Return the size of the keys and values of one token."""
    layers = model.model.language_model.layers
    size = sum(int(layer.self_attn.k_proj.out_features) for layer in layers)
    return 2 * size * int(model.dtype.itemsize)
