"""Chooses the next token of each row as transformers' `generate` does for that row alone.

transformers' own processors of the checkpoint's generation_config are created for each row, because
those that depend on a row's earlier tokens or on its length must not see the padding of a batch.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from spark_vision.models.protocols import GenerationSettings


class RowChoice(NamedTuple):
    """What chooses the tokens of one row.

    Attributes:
        rules: The processors of its scores.
        generator: The source of its random numbers, if tokens are sampled.
    """

    rules: Any
    generator: torch.Generator | None


class TokenChoice:
    """Chooses the tokens of rows by the checkpoint's rules and the settings.

    Args:
        model: A model of transformers. The rules of its generation_config are followed; its search
            strategies, such as beam search, and its sampling are ignored.
        settings: How to choose.
    """

    def __init__(self, model: Any, settings: GenerationSettings) -> None:
        self._model = model
        self._settings = settings
        self._config = copy.deepcopy(model.generation_config)
        penalty = settings.repetition_penalty
        self._config.update(
            do_sample=False,
            **({} if penalty is None else {"repetition_penalty": float(penalty)}),
        )
        model._prepare_special_tokens(self._config, device=model.device)
        self._warpers = _warpers(settings)

    def start(self, prompt: torch.Tensor, seed: int) -> RowChoice:
        """Return what chooses the tokens of a row.

        Args:
            prompt: int64 `[tokens]`.
            seed: Of its random numbers.
        """
        self._config.max_length = len(prompt) + self._settings.max_new_tokens
        device = self._model.device
        rules = self._model._get_logits_processor(
            generation_config=self._config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=prompt[None].to(device),
            logits_processor=LogitsProcessorList(),
            device=device,
        )
        generator = torch.Generator().manual_seed(seed) if self._settings.do_sample else None
        return RowChoice(rules, generator)

    def choose(
        self,
        rows: Sequence[RowChoice],
        texts: torch.Tensor,
        starts: list[int],
        scores: torch.Tensor,
    ) -> tuple[list[int], list[bool]]:
        """Choose one token per row.

        Args:
            rows: What chooses for each row.
            texts: int64 `[rows, tokens]`: prompts and generated tokens. A row is padded on the left
                with its own first token.
            starts: Where each row begins in `texts`.
            scores: float32 `[rows, vocabulary]`: the model's logits.

        Returns:
            The tokens, and whether all scores of a row are numbers below infinity.
        """
        # NaN and infinity are not below infinity; a token may be ruled out with -infinity.
        finite = (scores < torch.inf).all(dim=-1)
        scores = _follow_rules(rows, texts, starts, scores)
        if self._settings.do_sample:
            probabilities = self._warpers(texts, scores).softmax(dim=-1, dtype=torch.float64)
            numbers = [torch.rand(1, generator=row.generator, dtype=torch.float64) for row in rows]
            chosen = _draw(probabilities, torch.stack(numbers).to(scores.device))
        else:
            chosen = scores.argmax(dim=-1)
        # One transfer from the device, for which the host waits.
        tokens, is_finite = torch.stack([chosen, finite.long()]).tolist()
        return tokens, [bool(each) for each in is_finite]


def stop_tokens(config: Any) -> list[int]:
    """Return the stop tokens of a generation_config."""
    stops = config.eos_token_id
    if stops is None:
        return []
    return [stops] if isinstance(stops, int) else list(stops)


def _follow_rules(
    rows: Sequence[RowChoice], texts: torch.Tensor, starts: Sequence[int], scores: torch.Tensor
) -> torch.Tensor:
    # The usual rule takes all rows at once: a token that is repeated is penalised once.
    if all(
        isinstance(rule, RepetitionPenaltyLogitsProcessor) for row in rows for rule in row.rules
    ):
        together: torch.Tensor = rows[0].rules(texts, scores)
        return together
    alone = [
        row.rules(texts[place : place + 1, start:], scores[place : place + 1])
        for place, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]
    return torch.cat(alone)


def _warpers(settings: GenerationSettings) -> Any:
    """Create the warpers in the order of `generate`."""
    warpers = LogitsProcessorList()
    if settings.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        warpers.append(TopPLogitsWarper(settings.top_p))
    return warpers


def _draw(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Sample by the inverse CDF: the first token whose cumulative probability exceeds the number.

    Args:
        probabilities: float64 `[rows, vocabulary]`.
        numbers: float64 `[rows, 1]` in [0, 1).

    Returns:
        int64 `[rows]`.
    """
    cumulative = probabilities.cumsum(dim=-1)
    chosen = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
    return chosen.squeeze(1).clamp(max=probabilities.shape[-1] - 1)
