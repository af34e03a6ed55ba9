"""When a run is to be stopped because it no longer learns: NaN, or a loss far above where it began."""

import math
from dataclasses import dataclass, replace

from .failure import TrainFailure

# The newest losses count most; one bad batch is no divergence.
_DECAY = 0.9
_FIRST_STEPS = 20
# Far above: this many times the first losses, and this much more, in nats.
_FACTOR, _MARGIN = 3.0, 3.0


@dataclass(frozen=True, slots=True)
class LossTrend:
    """`first`: mean loss of the first steps. `lately`: mean with falling weights. Kept in the checkpoint,
    so that a resumed run stops where an uninterrupted one does."""

    steps: int = 0
    first: float = 0.0
    lately: float = 0.0

    def after(self, loss: float) -> "LossTrend":
        steps = self.steps + 1
        weight = max(1 - _DECAY, 1 / steps)
        known = replace(self, steps=steps, lately=self.lately + weight * (loss - self.lately))
        if steps <= _FIRST_STEPS:
            return replace(known, first=self.first + (loss - self.first) / steps)
        return known

    @property
    def diverged(self) -> bool:
        return self.steps > _FIRST_STEPS and self.lately > _FACTOR * self.first + _MARGIN


def divergence(step: int, *, loss: float, grad_norm: float, trend: LossTrend) -> str | None:
    """What is wrong at `step`, in words; None when it may go on. `trend` holds this loss already."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return f"The loss is {loss} and the gradient norm {grad_norm} at step {step}"
    if trend.diverged:
        return (
            f"The loss has risen to {trend.lately:.3g} on average at step {step}, "
            f"from {trend.first:.3g} over the first {_FIRST_STEPS} steps"
        )
    return None


def diverged(what: str, *, learning_rate: float, last_good: int | None) -> TrainFailure:
    """`last_good`: step of the newest checkpoint; its weights are from before the fault."""
    kept = (
        f"The last good checkpoint is that of step {last_good}."
        if last_good
        else "No checkpoint had been written before."
    )
    return TrainFailure(
        "training_diverged",
        f"{what} with learning_rate {learning_rate:g}. {kept}",
        f"Start again with a lower learning_rate, such as {learning_rate / 3:.2g}, or a larger warmup_ratio; "
        "if the first step fails already, the model's weights or the rows are at fault."
        + (f" Checkpoint {last_good} can be used or trained on as a model." if last_good else ""),
    )
