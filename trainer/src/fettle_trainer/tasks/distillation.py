"""What a teacher's answers add to a loss, beside the labels (distillation, Hinton et al. 2015).

    loss = (1 - w) * hard + w * soft,    soft = T^2 * KL(teacher / T || student / T)

w: `distill_weight`, T: `distill_temperature`. T^2 keeps the soft part's gradient as large at every T. Of
labels that do not exclude each other the soft part is the binary cross entropy with the teacher's
probabilities, of a number the squared distance from the teacher's.

Legend: N rows, V classes or labels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..loss import LossSum

if TYPE_CHECKING:
    from ..collate import Batch
    from ..data import TokenRows
    from .objective import Settings


@dataclass(frozen=True, slots=True)
class Teaching:
    """How much a teacher's answers count, where a batch has them: rows to train on do, rows to validate on
    do not, so that their loss is that of any run."""

    weight: float = 0.0
    temperature: float = 1.0

    @classmethod
    def of(cls, settings: "Settings", rows: "TokenRows") -> "Teaching":
        if rows.reference is None:
            return cls()
        return cls(settings.distill_weight, settings.distill_temperature)

    def speaks(self, batch: "Batch") -> bool:
        return self.weight > 0 and batch.reference is not None

    def mixed(self, hard: LossSum, soft: Tensor) -> LossSum:
        return LossSum((1 - self.weight) * hard.total + self.weight * soft, hard.num_correct)

    def of_classes(self, logits_NV: Tensor, batch: "Batch") -> Tensor:
        """N, of one class each."""
        student, teacher = (
            (logits / self.temperature).log_softmax(dim=-1) for logits in (logits_NV.float(), _answers(batch))
        )
        apart_NV = functional.kl_div(student, teacher, reduction="none", log_target=True)
        return self.temperature**2 * apart_NV.sum(dim=-1)

    def of_labels(self, logits_NV: Tensor, batch: "Batch") -> Tensor:
        """N x V, of any number of labels."""
        goals_NV = torch.sigmoid(_answers(batch) / self.temperature)
        student_NV = logits_NV.float() / self.temperature
        return self.temperature**2 * functional.binary_cross_entropy_with_logits(
            student_NV, goals_NV, reduction="none"
        )

    def of_numbers(self, guesses_N: Tensor, batch: "Batch") -> Tensor:
        """N, of one number each."""
        return (guesses_N.float() - _answers(batch)[:, 0]).square()


def _answers(batch: "Batch") -> Tensor:
    return cast("Tensor", batch.reference)
