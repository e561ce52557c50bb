"""A training run's plan: how many steps, how fast each one learns, and what the terminal shows."""

import math
import resource
import time
from collections.abc import Iterable, Iterator

import torch
from torch import nn

_WARM_UP = 0.05
_WEIGHT_DECAY = 0.05
_LONGEST_GRADIENT = 1.0
_SECONDS_BETWEEN_LINES = 15.0


def cpu_minutes() -> str:
    """Say what this process and the ended ones that it started have computed."""
    seconds = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    return f"{seconds / 60:.1f} minutes of CPU"


class Schedule:
    """AdamW with a linear warm-up and a cosine to zero, as most vision transformers are trained.

    Args:
        name: What the lines on the terminal begin with.
        parameters: What is trained.
        steps: How many steps there will be.
        rate: The highest learning rate.
        towers: Whose linear layers are trained by Muon instead (arXiv:2502.16982): it learns as
            much in half the steps. Their weights are among `parameters`.
    """

    def __init__(
        self,
        name: str,
        parameters: Iterable[nn.Parameter],
        steps: int,
        rate: float,
        towers: Iterable[nn.Module] = (),
    ) -> None:
        self._name = name
        self._steps = steps
        self._parameters = list(parameters)
        matrices = [
            layer.weight
            for tower in towers
            for layer in tower.modules()
            if isinstance(layer, nn.Linear)
        ]
        taken = {id(matrix) for matrix in matrices}
        others = [p for p in self._parameters if id(p) not in taken]
        # Biases, norms and scales are not pulled to zero.
        groups = [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": _WEIGHT_DECAY},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
        ]
        if matrices:
            self._optimizers.append(
                torch.optim.Muon(
                    matrices,
                    lr=rate,
                    weight_decay=_WEIGHT_DECAY,
                    # Its updates get the size that AdamW's have, so that both take one rate.
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self._rates = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, self._share)
            for optimizer in self._optimizers
        ]
        self._started = self._shown = time.monotonic()
        self._cpu_started = time.process_time()

    def __iter__(self) -> Iterator[int]:
        """Count the steps."""
        return iter(range(self._steps))

    def learn(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        """Take one step down the sum of the losses, and now and then show them.

        Args:
            step: Which one it is.
            losses: Scalars by the name that is shown.
        """
        sum(losses.values(), torch.tensor(0.0)).backward()
        nn.utils.clip_grad_norm_(self._parameters, _LONGEST_GRADIENT)
        for optimizer, rate in zip(self._optimizers, self._rates, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_LINES or step + 1 == self._steps:
            self._shown = now
            parts = "  ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            elapsed = now - self._started
            left = elapsed / (step + 1) * (self._steps - step - 1)
            print(
                f"{self._name}: step {step + 1}/{self._steps}  {parts}  "
                f"{elapsed:.0f} s ({time.process_time() - self._cpu_started:.0f} s of CPU), "
                f"{left:.0f} s to go",
                flush=True,
            )

    def _share(self, step: int) -> float:
        warm_up = max(1, round(self._steps * _WARM_UP))
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self._steps - warm_up)))
