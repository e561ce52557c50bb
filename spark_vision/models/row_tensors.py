"""The tensors of rows that are decoded together: one line per row, padded on the left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad


@dataclass
class RowTensors:
    """What a decoding step reads; all on the model's device.

    Attributes:
        texts: int64 `[rows, tokens]`: prompts and generated tokens. The padding is a token of the
            row, so that a rule for tokens that occur in the row can take it as it is.
        mask: int64 `[rows, tokens]`: 0 for padding, else 1.
        positions: int64 `[3, rows, 1]`: the coordinates of the newest token.
        cache: The keys and values of all tokens but the newest: a DynamicCache.
    """

    texts: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    cache: Any

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
            layer.keys = torch.cat([layer.keys, more.keys])
            layer.values = torch.cat([layer.values, more.values])

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
            layer.keys = layer.keys[index, :, start:]
            layer.values = layer.values[index, :, start:]

    def _widen(self, width: int) -> None:
        more = width - self.texts.shape[1]
        if more == 0:
            return
        self.texts = torch.cat([self.texts[:, :1].expand(-1, more), self.texts], dim=1)
        self.mask = pad(self.mask, (more, 0))
        for layer in self.cache.layers:
            layer.keys = pad(layer.keys, (0, 0, more, 0))
            layer.values = pad(layer.values, (0, 0, more, 0))
