"""The tensors of rows that are decoded together: one line per row, padded on the left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import Cache, DynamicLayer

# Free columns of a new cache: the older ones are copied once for so many new tokens.
FREE_COLUMN_COUNT = 64


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The cache of one layer, whose memory has free columns at the end."""

    _memory: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values `[rows, heads, tokens, head_size]`, and return all of them."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if self._memory is None or self._memory[0].shape[2] < end:
            rows, heads, _, head_size = key_states.shape
            shape = (rows, heads, end + FREE_COLUMN_COUNT, head_size)
            memory = key_states.new_empty(shape), value_states.new_empty(shape)
            if self.keys is not None and self.values is not None:
                memory[0][:, :, :start] = self.keys
                memory[1][:, :, :start] = self.values
            self._memory = memory
            self.is_initialized = True
        self._memory[0][:, :, start:end] = key_states
        self._memory[1][:, :, start:end] = value_states
        self.keys, self.values = (memory[:, :, :end] for memory in self._memory)
        return self.keys, self.values

    def change(self, function: Callable[..., torch.Tensor], *others: "GrowingLayer") -> None:
        """Replace the keys, and the values, by a function of them and those of other layers."""
        self.keys = function(self.keys, *(other.keys for other in others))
        self.values = function(self.values, *(other.values for other in others))
        self._memory = None


@dataclass
class RowTensors:
    """What a decoding step reads; all on the model's device.

    Attributes:
        texts: int64 `[rows, tokens]`: prompts and generated tokens. The padding is a token of the
            row, so that a rule for tokens that occur in the row can take it as it is.
        mask: int64 `[rows, tokens]`: 0 for padding, else 1.
        positions: int64 `[3, rows, 1]`: the coordinates of the newest token.
        cache: The keys and values of all tokens but the newest.
    """

    texts: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    cache: Any

    @staticmethod
    def new_cache() -> Any:
        """Return an empty cache."""
        return Cache(layer_class_to_replicate=GrowingLayer)

    def append(self, tokens: Sequence[int]) -> None:
        """Append one token to each row."""
        newest = torch.tensor(tokens, device=self.texts.device)[:, None]
        self.texts = torch.cat([self.texts, newest], dim=1)
        self.mask = pad(self.mask, (0, 1), value=1)
        self.positions = self.positions + 1

    def join(self, other: "RowTensors") -> None:
        """Take over the rows of another object."""
        width = max(self.texts.shape[1], other.texts.shape[1])
        self._widen(width)
        other._widen(width)
        self.texts = torch.cat([self.texts, other.texts])
        self.mask = torch.cat([self.mask, other.mask])
        self.positions = torch.cat([self.positions, other.positions], dim=1)
        for layer, more in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.change(lambda *tensors: torch.cat(tensors), more)

    def keep(self, places: Sequence[int], width: int) -> None:
        """Keep the rows at some places, and the last columns.

        Args:
            places: Of the rows to keep.
            width: The length of the longest of them.
        """
        index = torch.tensor(places, device=self.texts.device)
        start = self.texts.shape[1] - width
        self.texts = self.texts[index, start:]
        self.mask = self.mask[index, start:]
        self.positions = self.positions[:, index]
        for layer in self.cache.layers:
            layer.change(lambda tensor: tensor[index, :, start:])

    def _widen(self, width: int) -> None:
        more = width - self.texts.shape[1]
        if more == 0:
            return
        self.texts = torch.cat([self.texts[:, :1].expand(-1, more), self.texts], dim=1)
        self.mask = pad(self.mask, (more, 0))
        for layer in self.cache.layers:
            layer.change(lambda tensor: pad(tensor, (0, 0, more, 0)))
