"""One class a text, or pair of texts. `aux`: token types of pairs, empty for one text. `label`: the class."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ..loss import LossSum
from ..messages import PromptError
from ..tensor_files import integers
from .distillation import Teaching
from .objective import Feed, Objective, RowReader, Scores, Settings, TokenRow, text_of

if TYPE_CHECKING:
    from ..collate import Batch
    from ..data import TokenRows


class Classification(Objective):
    auto_class = "AutoModelForSequenceClassification"
    peft_task = "SEQ_CLS"
    reads = "rows"
    has_head = True

    def __init__(self, weights: Sequence[float] = (), teaching: Teaching | None = None) -> None:
        self._weights = torch.tensor(weights)
        self._teaching = teaching or Teaching()

    def tuned(self, settings: Settings, rows: "TokenRows") -> "Classification":
        weights = balanced(rows.labels) if settings.class_weights == "balanced" else ()
        return Classification(weights, Teaching.of(settings, rows))

    @property
    def weights(self) -> Sequence[float]:
        return [float(weight) for weight in self._weights]

    def configure(self, config: Any, labels: Sequence[str] | None) -> None:
        if labels is not None:
            name_outputs(config, labels)
            config.problem_type = "single_label_classification"

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        known = reader.labels or ()
        label = row.get("label")
        if label not in known:
            raise PromptError(
                "unknown_label", f"The label {label!r} is none of the run's {len(known)} labels."
            )
        pair = row.get("text_pair")
        text = reader.prompts.classification_text(text_of(row, "text"), pair, reader.max_length)
        return [TokenRow(text.ids, text.types, known.index(label), truncated=text.truncated)]

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        # A packed decoder answers at its last token; other models find the place by themselves.
        last = torch.tensor([len(ids) - 1])
        return [Feed(ids, last, label, aux if len(aux) else None)]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return num_rows

    def num_losses(self, batch: "Batch") -> float:
        if not len(self._weights):
            return super().num_losses(batch)
        targets = batch.targets_N.cpu()
        return float(self._padded(1 + int(targets.max()))[targets].double().sum())

    def loss(self, logits_NV: Tensor, batch: "Batch", smoothing: float) -> LossSum:
        """A row's weight is of what it teaches by its label and of what the teacher says of it."""
        if not self._teaching.speaks(batch):
            return self._hard(logits_NV, batch, smoothing)
        soft_N = self._teaching.of_classes(logits_NV, batch)
        if len(self._weights):
            soft_N = soft_N * self._weights.to(soft_N.device)[batch.targets_N]
        # The hard loss may destroy what it is given.
        return self._teaching.mixed(self._hard(logits_NV.clone(), batch, smoothing), soft_N.sum())

    def _hard(self, logits_NV: Tensor, batch: "Batch", smoothing: float) -> LossSum:
        if not len(self._weights):
            return super().loss(logits_NV, batch, smoothing)
        logits, targets = logits_NV.float(), batch.targets_N
        weights = self._padded(logits.shape[1]).to(logits.device)
        total = functional.cross_entropy(
            logits, targets, weight=weights, reduction="sum", label_smoothing=smoothing
        )
        return LossSum(total, int((logits.argmax(dim=-1) == targets).sum()))

    def _padded(self, num_classes: int) -> Tensor:
        """At least so many: classes after the last that is trained on may still be held out."""
        missing = max(0, num_classes - len(self._weights))
        return torch.cat([self._weights, self._weights.new_ones(missing)])

    def scores(self) -> Scores:
        return _ClassScores()


def balanced(labels: Tensor) -> list[float]:
    """By class, so that every class weighs the same over all rows and rows weigh 1 on average; 1 for a class
    without a row."""
    counts = torch.bincount(labels).double()
    occurring = int((counts > 0).sum())
    weights = torch.where(counts > 0, len(labels) / (occurring * counts.clamp(min=1)), 1.0)
    return [float(weight) for weight in weights]


def name_outputs(config: Any, names: Sequence[str]) -> None:
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


class _ClassScores(Scores):
    def __init__(self) -> None:
        self._guesses: list[int] = []
        self._targets: list[int] = []

    def add(self, logits_NV: Tensor, batch: "Batch") -> None:
        self._guesses += integers(logits_NV.argmax(dim=-1))
        self._targets += integers(batch.targets_N)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        right = sum(g == t for g, t in zip(self._guesses, self._targets, strict=True))
        return {
            "accuracy": right / len(self._targets),
            "f1_macro": macro_f1(self._guesses, self._targets),
        }


def macro_f1(guesses: Sequence[int], targets: Sequence[int]) -> float:
    """Mean F1 over the classes that occur in either list."""
    scores: list[float] = []
    for label in sorted(set(guesses) | set(targets)):
        hits = sum(g == t == label for g, t in zip(guesses, targets, strict=True))
        named = guesses.count(label) + targets.count(label)
        scores.append(2 * hits / named)
    return sum(scores) / len(scores)
