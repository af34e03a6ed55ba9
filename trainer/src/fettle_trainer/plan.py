"""How many steps a run has, and when it evaluates."""

from dataclasses import dataclass

from .collate import steps_per_epoch
from .spec import Hyperparameters


@dataclass(frozen=True, slots=True)
class Plan:
    rows_per_step: int
    steps_per_epoch: int
    total_steps: int

    @classmethod
    def of(cls, hyper: Hyperparameters, num_rows: int) -> "Plan":
        rows_per_step = hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps
        per_epoch = steps_per_epoch(num_rows, rows_per_step)
        return cls(rows_per_step, per_epoch, per_epoch * hyper.num_train_epochs)

    def evaluates_at(self, step: int, eval_steps: int) -> bool:
        if step == 0:
            return False
        return step == self.total_steps or step % (eval_steps or self.steps_per_epoch) == 0
