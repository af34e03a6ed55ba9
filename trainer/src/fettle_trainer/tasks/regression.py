"""One number a text. `aux`: token types of pairs, empty for one text. `label`: the bits of the number as
fp64.

The model learns (score - mean) / std, so that one learning rate suits scores of any size; mean and std are
the run's `target_mean` and `target_std`, and the artefact says them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..loss import LossSum
from ..messages import PromptError
from .distillation import Teaching
from .objective import Feed, Objective, RowReader, Scores, Settings, TokenRow, text_of

if TYPE_CHECKING:
    from ..collate import Batch
    from ..data import TokenRows

# A guess counts as right within half a standard deviation of the training rows.
_NEAR = 0.5
# Two models give the same number within this part of it.
_SAME = 0.05


class Regression(Objective):
    auto_class = "AutoModelForSequenceClassification"
    peft_task = "SEQ_CLS"
    reads = "rows"
    has_head = True

    def __init__(self, mean: float = 0.0, std: float = 1.0, teaching: Teaching | None = None) -> None:
        self._mean, self._std = mean, std
        self._teaching = teaching or Teaching()

    def tuned(self, settings: Settings, rows: "TokenRows") -> "Regression":
        return Regression(settings.target_mean, settings.target_std, Teaching.of(settings, rows))

    def configure(self, config: Any, labels: Sequence[str] | None) -> None:
        config.num_labels = 1
        config.problem_type = "regression"

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        score = row.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise PromptError(
                "row_kind", "The row has no number 'score': it is of another kind than the task."
            )
        text = reader.prompts.classification_text(
            text_of(row, "text"), row.get("text_pair"), reader.max_length
        )
        bits = int(torch.tensor(float(score), dtype=torch.float64).view(torch.int64))
        return [TokenRow(text.ids, text.types, bits, truncated=text.truncated)]

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        last = torch.tensor([len(ids) - 1])
        return [Feed(ids, last, label.view(torch.float64), aux if len(aux) else None)]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return num_rows

    def loss(self, logits_NV: Tensor, batch: "Batch", smoothing: float) -> LossSum:
        """Squared distance in standard deviations."""
        goals_N = ((batch.targets_N - self._mean) / self._std).float()
        apart_N = logits_NV[:, 0].float() - goals_N
        hard = LossSum(apart_N.square().sum(), int((apart_N.abs() < _NEAR).sum()))
        if not self._teaching.speaks(batch):
            return hard
        return self._teaching.mixed(hard, self._teaching.of_numbers(logits_NV[:, 0], batch).sum())

    def same(self, one_NV: Tensor, other_NV: Tensor) -> Tensor:
        return (one_NV - other_NV)[:, 0].abs() < _SAME

    def scores(self) -> Scores:
        return _NumberScores(self._mean, self._std)


class _NumberScores(Scores):
    """In the rows' own units."""

    def __init__(self, mean: float, std: float) -> None:
        self._mean, self._std = mean, std
        self._guesses, self._targets = list[Tensor](), list[Tensor]()

    def add(self, logits_NV: Tensor, batch: "Batch") -> None:
        self._guesses.append(logits_NV[:, 0].double().cpu() * self._std + self._mean)
        self._targets.append(batch.targets_N.double().cpu())

    def metrics(self, mean_loss: float) -> dict[str, float]:
        guesses, targets = torch.cat(self._guesses), torch.cat(self._targets)
        apart = guesses - targets
        spread = float((targets - targets.mean()).square().sum())
        found = {"mae": float(apart.abs().mean()), "rmse": float(apart.square().mean().sqrt())}
        # Where all targets are the same there is nothing to explain and no order to find.
        if spread > 0:
            found["r2"] = 1 - float(apart.square().sum()) / spread
            found["spearman"] = spearman(guesses, targets)
        return found


def spearman(a_N: Tensor, b_N: Tensor) -> float:
    """Correlation of ranks, equal values sharing the mean of theirs; 0 where one side is all the same."""
    ranks = torch.stack([_ranks(a_N), _ranks(b_N)])
    ranks = ranks - ranks.mean(dim=1, keepdim=True)
    size = float(ranks.square().sum(dim=1).prod().sqrt())
    return float((ranks[0] * ranks[1]).sum()) / size if size > 0 else 0.0


def _ranks(values_N: Tensor) -> Tensor:
    unique = cast("Any", values_N).unique(sorted=True, return_inverse=True, return_counts=True)
    _, which, counts = cast("tuple[Tensor, Tensor, Tensor]", unique)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[which]
