"""A logits processor that makes each row independent of its batch: rules, sampling, NaN check.

It runs inside transformers' `generate`, after the processors of the checkpoint's generation_config,
and reuses transformers' own processors and warpers. Those that depend on a row's earlier tokens run
here, because `generate` would pass them the padding as well.
"""

from typing import Any

import torch
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from spark_vision.models.protocols import CaptionBatch, GenerationSettings

# The fields of a generation_config that are implemented here, and the values that disable them.
HANDLED_FIELDS: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": None,
    "no_repeat_ngram_size": None,
    "encoder_no_repeat_ngram_size": None,
    "min_length": None,
    "forced_eos_token_id": None,
}


class RowwiseLogitsProcessor(LogitsProcessor):
    """Replaces the scores so that greedy `generate` takes the chosen or sampled token.

    Args:
        batch: For its padding, which is not part of the text, and for its sampling seeds.
        settings: How to choose a token.
        config: The checkpoint's generation_config.
        device: The device of the scores.
    """

    def __init__(
        self, batch: CaptionBatch, settings: GenerationSettings, config: Any, device: torch.device
    ) -> None:
        self._prompt_length = batch.token_ids.shape[1]
        penalty = settings.repetition_penalty
        if penalty is None:
            penalty = config.repetition_penalty or 1.0
        self._penalty = RepetitionPenaltyLogitsProcessor(float(penalty)) if penalty != 1.0 else None
        self._padding = (batch.attention_mask == 0).to(device)
        # Replaces a row's padding: a token that occurs in the row anyway.
        starts = batch.attention_mask.argmax(dim=1, keepdim=True)
        self._own_token = batch.token_ids.gather(1, starts).to(device)
        self._starts: list[int] = starts.flatten().tolist()
        self._rules = [
            _rules(config, ids[start:].to(device), settings.max_new_tokens)
            for ids, start in zip(batch.token_ids, self._starts, strict=True)
        ]
        self._warpers = _warpers(settings)
        self._generators = []
        if settings.do_sample:
            self._generators = [
                torch.Generator().manual_seed(seed) for seed in batch.seeds.tolist()
            ]
        self._stops = torch.tensor(stop_tokens(config), dtype=torch.int64, device=device)
        self._is_running = torch.ones(len(batch.token_ids), dtype=torch.bool, device=device)
        self.finite = self._is_running.clone()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Process the scores of one step.

        Args:
            input_ids: int64 `[rows, tokens]`: prompts and generated tokens.
            scores: float32 `[rows, vocabulary]`.
        """
        if input_ids.shape[1] > self._prompt_length:
            self._is_running &= ~torch.isin(input_ids[:, -1], self._stops)
        # NaN and infinity are not below infinity; a token that is ruled out has -infinity. Rows
        # that have ended are ignored.
        self.finite &= (scores < torch.inf).all(dim=-1) | ~self._is_running
        if self._penalty is not None:
            scores = self._penalty(self._without_padding(input_ids), scores)
        if any(self._rules):
            scores = self._follow_rules(input_ids, scores)
        if not self._generators:
            return scores
        probabilities = self._warpers(input_ids, scores).softmax(dim=-1, dtype=torch.float64)
        numbers = [torch.rand(1, generator=each, dtype=torch.float64) for each in self._generators]
        drawn = _draw(probabilities, torch.stack(numbers).to(scores.device))
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)

    def _follow_rules(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        alone = [
            rules(input_ids[row : row + 1, start:], scores[row : row + 1])
            for row, (rules, start) in enumerate(zip(self._rules, self._starts, strict=True))
        ]
        return torch.cat(alone)

    def _without_padding(self, input_ids: torch.Tensor) -> torch.Tensor:
        prompts = input_ids[:, : self._prompt_length]
        texts = torch.where(self._padding, self._own_token, prompts)
        return torch.cat([texts, input_ids[:, self._prompt_length :]], dim=1)


def stop_tokens(config: Any) -> list[int]:
    """Return the stop tokens of a generation_config."""
    stops = config.eos_token_id
    if stops is None:
        return []
    return [stops] if isinstance(stops, int) else list(stops)


def _rules(config: Any, prompt: torch.Tensor, max_new_tokens: int) -> Any:
    """Create one row's processors in the order of `generate`; none of them uses other rows.

    Args:
        config: The checkpoint's generation_config.
        prompt: int64 `[tokens]` of this row, without padding.
        max_new_tokens: Maximum new tokens of the row.
    """
    rules = LogitsProcessorList()
    device = str(prompt.device)
    prompts: Any = prompt[None]
    if config.encoder_repetition_penalty not in (None, 1.0):
        penalty = config.encoder_repetition_penalty
        rules.append(EncoderRepetitionPenaltyLogitsProcessor(penalty, prompts))
    if config.no_repeat_ngram_size:
        rules.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.encoder_no_repeat_ngram_size:
        size = config.encoder_no_repeat_ngram_size
        rules.append(EncoderNoRepeatNGramLogitsProcessor(size, prompts))
    stops = stop_tokens(config)
    if config.min_length and stops:
        rules.append(MinLengthLogitsProcessor(config.min_length, stops, device=device))
    if config.forced_eos_token_id is not None:
        max_length = len(prompt) + max_new_tokens
        end = config.forced_eos_token_id
        rules.append(ForcedEOSTokenLogitsProcessor(max_length, end, device=device))
    return rules


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
        int64 `[rows, 1]`.
    """
    cumulative = probabilities.cumsum(dim=-1)
    chosen = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
    return chosen.clamp(max=probabilities.shape[-1] - 1)
