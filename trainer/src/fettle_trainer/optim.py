"""Optimiser and learning rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .spec import Hyperparameters


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate by step: linear warm-up, then linear, cosine or constant. A pure function of the step."""

    peak: float
    kind: str
    warmup_steps: int
    total_steps: int

    def at(self, step: int) -> float:
        """Rate of optimiser step `step` (0-based)."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        if self.kind == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.peak * max(0.0, 1 - done)


def make_schedule(hyperparameters: Hyperparameters, total_steps: int) -> Schedule:
    warmup = math.ceil(hyperparameters.warmup_ratio * total_steps)
    return Schedule(hyperparameters.learning_rate, hyperparameters.lr_scheduler_type, warmup, total_steps)


def make_optimiser(
    trainable: Mapping[str, nn.Parameter], hyperparameters: Hyperparameters
) -> torch.optim.AdamW:
    """Fused AdamW. Biases, norms and other vectors are not decayed."""
    decayed = [p for p in trainable.values() if p.ndim >= 2]
    plain = [p for p in trainable.values() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": hyperparameters.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=hyperparameters.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Moments by parameter name, empty before the first step."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainable.items():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = value
    return tensors


def load_optimiser(
    optimiser: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimiser_tensors`, on each parameter's device wherever the tensors are: the fused step
    takes no others. KeyError when a parameter is missing."""
    if not tensors:
        return
    for name, parameter in trainable.items():
        optimiser.state[parameter] = {
            key: tensors[f"{name}.{key}"].to(parameter.device, copy=True)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
