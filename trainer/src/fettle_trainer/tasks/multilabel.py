"""Any number of labels a text. `aux`: 0 or 1 for each of the run's labels, then token types of pairs.
`label`: how many labels the run has. Legend: N rows, V labels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..loss import LossSum
from ..messages import PromptError
from .classification import name_outputs
from .distillation import Teaching
from .objective import Feed, Objective, RowReader, Scores, Settings, TokenRow, text_of

if TYPE_CHECKING:
    from ..collate import Batch
    from ..data import TokenRows


# A label of one row in a million would drown all others.
_LARGEST_WEIGHT = 100.0


class Multilabel(Objective):
    auto_class = "AutoModelForSequenceClassification"
    peft_task = "SEQ_CLS"
    reads = "rows"
    has_head = True

    def __init__(self, weights: Sequence[float] = (), teaching: Teaching | None = None) -> None:
        self._weights = torch.tensor(weights)
        self._teaching = teaching or Teaching()

    def tuned(self, settings: Settings, rows: "TokenRows") -> "Multilabel":
        weights = balanced(rows) if settings.class_weights == "balanced" else ()
        return Multilabel(weights, Teaching.of(settings, rows))

    @property
    def weights(self) -> Sequence[float]:
        return [float(weight) for weight in self._weights]

    def configure(self, config: Any, labels: Sequence[str] | None) -> None:
        if labels is not None:
            name_outputs(config, labels)
            config.problem_type = "multi_label_classification"

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        known = reader.labels or ()
        given = row.get("labels")
        if not isinstance(given, list):
            raise PromptError(
                "row_kind", "The row has no list 'labels': it is of another kind than the task."
            )
        named = cast("list[Any]", given)
        for label in named:
            if label not in known:
                raise PromptError(
                    "unknown_label", f"The label {label!r} is none of the run's {len(known)} labels."
                )
        text = reader.prompts.classification_text(
            text_of(row, "text"), row.get("text_pair"), reader.max_length
        )
        marks = [int(label in named) for label in known]
        return [TokenRow(text.ids, marks + text.types, len(known), truncated=text.truncated)]

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        count = int(label)
        types = aux[count:]
        last = torch.tensor([len(ids) - 1])
        return [Feed(ids, last, aux[None, :count].float(), types if len(types) else None)]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return num_rows

    def loss(self, logits_NV: Tensor, batch: "Batch", smoothing: float) -> LossSum:
        """One loss a row and label. Smoothing moves the targets 0 and 1 towards a half."""
        targets_NV = batch.targets_N
        goals_NV = targets_NV * (1 - smoothing) + smoothing / 2
        weights = self._weights.to(logits_NV.device) if len(self._weights) else None
        total = functional.binary_cross_entropy_with_logits(
            logits_NV.float(), goals_NV, reduction="sum", pos_weight=weights
        )
        right_N = ((logits_NV > 0) == targets_NV.bool()).all(dim=-1)
        hard = LossSum(total, int(right_N.sum()))
        if not self._teaching.speaks(batch):
            return hard
        return self._teaching.mixed(hard, self._teaching.of_labels(logits_NV, batch).sum())

    def same(self, one_NV: Tensor, other_NV: Tensor) -> Tensor:
        return ((one_NV > 0) == (other_NV > 0)).all(dim=-1)

    def scores(self) -> Scores:
        return _LabelScores()


def balanced(rows: "TokenRows") -> list[float]:
    """By label, what a row that has it counts, so that all which have it weigh as much as all which have not:
    at most a hundred times as much or as little, and 1 for a label of no row."""
    have = marks_of(rows).double().sum(dim=0)
    ratio = ((len(rows) - have) / have.clamp(min=1)).clamp(1 / _LARGEST_WEIGHT, _LARGEST_WEIGHT)
    return [float(one) for one in torch.where(have > 0, ratio, 1.0)]


def marks_of(rows: "TokenRows") -> Tensor:
    """N x V, 1 where a row has a label."""
    return rows.aux[rows.aux_starts[:-1, None] + torch.arange(int(rows.labels[0]))]


class _LabelScores(Scores):
    """A label is given where its probability is above a half."""

    def __init__(self) -> None:
        self._right, self._rows = 0, 0
        self._counts_3V: Tensor | None = None

    def add(self, logits_NV: Tensor, batch: "Batch") -> None:
        guessed, wanted = logits_NV > 0, batch.targets_N.bool()
        counts = torch.stack([(guessed & wanted).sum(0), guessed.sum(0), wanted.sum(0)]).cpu()
        self._counts_3V = counts if self._counts_3V is None else self._counts_3V + counts
        self._right += int((guessed == wanted).all(dim=-1).sum())
        self._rows += len(wanted)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        hits, guessed, wanted = cast("Tensor", self._counts_3V).double()
        named = guessed + wanted
        occurs = named > 0
        each = 2 * hits[occurs] / named[occurs]
        return {
            "subset_accuracy": self._right / self._rows,
            "f1_micro": float(2 * hits.sum() / named.sum().clamp(min=1)),
            "f1_macro": float(each.mean()) if len(each) else 1.0,
        }
