"""Chooses the next token of each row as if the row were alone: penalty, draw, and a look for NaN.

It runs inside of transformers' own `generate`, after the processors of the checkpoint's
generation_config, and uses transformers' own penalty and warpers.
"""

from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from spark_vision.models.protocols import CaptionBatch, GenerationSettings


class NextToken(LogitsProcessor):
    """The scores from which `generate`, told to be greedy, takes the token that is meant.

    Args:
        batch: Its padding must not count as text that occurred; its seeds decide what is drawn.
        settings: What to do to the scores.
        repetition_penalty: That of the settings, or the checkpoint's.
        device: Where the scores are.
    """

    def __init__(
        self,
        batch: CaptionBatch,
        settings: GenerationSettings,
        repetition_penalty: float,
        device: torch.device,
    ) -> None:
        self._prompt_length = batch.token_ids.shape[1]
        self._penalty = (
            RepetitionPenaltyLogitsProcessor(repetition_penalty)
            if repetition_penalty != 1.0
            else None
        )
        self._padding = (batch.attention_mask == 0).to(device)
        # A token that each row has anyway stands where it is padded.
        first = batch.attention_mask.argmax(dim=1, keepdim=True)
        self._own_token = batch.token_ids.gather(1, first).to(device)
        self._warpers = _warpers(settings)
        self._draws = None
        if settings.do_sample:
            self._draws = _draws(batch.seeds, settings.max_new_tokens).to(device)
        self.finite = torch.ones(len(batch.token_ids), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Rescore one step.

        Args:
            input_ids: int64 `[rows, tokens]`: prompts and what has been generated.
            scores: float32 `[rows, vocabulary]`.
        """
        # NaN and infinity are not below infinity; a token that is ruled out has -infinity.
        self.finite &= (scores < torch.inf).all(dim=-1)
        if self._penalty is not None:
            scores = self._penalty(self._without_padding(input_ids), scores)
        if self._draws is None:
            return scores
        step = input_ids.shape[1] - self._prompt_length
        probabilities = self._warpers(input_ids, scores).softmax(dim=-1, dtype=torch.float64)
        drawn = _draw(probabilities, self._draws[:, step : step + 1])
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)

    def _without_padding(self, input_ids: torch.Tensor) -> torch.Tensor:
        prompts = input_ids[:, : self._prompt_length]
        texts = torch.where(self._padding, self._own_token, prompts)
        return torch.cat([texts, input_ids[:, self._prompt_length :]], dim=1)


def _warpers(settings: GenerationSettings) -> Any:
    """Order them as `generate` does."""
    warpers = LogitsProcessorList()
    if settings.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        warpers.append(TopPLogitsWarper(settings.top_p))
    return warpers


def _draws(seeds: torch.Tensor, count: int) -> torch.Tensor:
    """Draw each row's numbers from its own seed: float64 `[rows, count]` in [0, 1), on the CPU."""
    generator = torch.Generator()
    return torch.stack(
        [
            torch.rand(count, generator=generator.manual_seed(seed), dtype=torch.float64)
            for seed in seeds.tolist()
        ]
    )


def _draw(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Invert the distribution function: the first token whose cumulated probability is above.

    Args:
        probabilities: float64 `[rows, vocabulary]`.
        numbers: float64 `[rows, 1]` in [0, 1).

    Returns:
        int64 `[rows, 1]`.
    """
    cumulated = probabilities.cumsum(dim=-1)
    chosen = torch.searchsorted(cumulated, numbers * cumulated[:, -1:], right=True)
    return chosen.clamp(max=probabilities.shape[-1] - 1)
