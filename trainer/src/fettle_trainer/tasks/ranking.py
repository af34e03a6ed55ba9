"""Which of two texts is better: the model gives each a number, and learns the difference (Bradley and Terry
1952: loss = -log sigmoid(better - worse)).

`ids`: the better text, then the other. `label`: tokens of the first. `aux`: token types of both where a
prompt came first. Legend: N texts, two a row.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ..loss import LossSum
from ..messages import PromptError
from .objective import Feed, Objective, RowReader, Scores, TokenRow, text_of

if TYPE_CHECKING:
    from ..collate import Batch


class Ranking(Objective):
    auto_class = "AutoModelForSequenceClassification"
    peft_task = "SEQ_CLS"
    reads = "rows"
    has_head = True

    def configure(self, config: Any, labels: Sequence[str] | None) -> None:
        config.num_labels = 1
        config.problem_type = "regression"

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        prompt = row.get("prompt")
        better, worse = (
            reader.prompts.classification_text(
                text if prompt is None else prompt, None if prompt is None else text, reader.max_length
            )
            for text in (text_of(row, "chosen_text"), text_of(row, "rejected_text"))
        )
        if better.ids == worse.ids:
            raise PromptError(
                "same_texts",
                "Both texts are the same to the model, as far as max_length reaches: there is no choice.",
            )
        truncated = better.truncated or worse.truncated
        return [
            TokenRow(better.ids + worse.ids, better.types + worse.types, len(better.ids), truncated=truncated)
        ]

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        end = int(label)
        parts = ((ids[:end], aux[:end], 1), (ids[end:], aux[end:], 0))
        return [
            Feed(one, torch.tensor([len(one) - 1]), torch.tensor([better]), types if len(aux) else None)
            for one, types, better in parts
        ]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return num_rows

    def num_losses(self, batch: "Batch") -> float:
        return len(batch.targets_N) // 2

    def num_answers(self, batch: "Batch") -> int:
        return len(batch.targets_N) // 2

    def loss(self, logits_NV: Tensor, batch: "Batch", smoothing: float) -> LossSum:
        """Smoothing: that part of the pairs is taken to be the wrong way round."""
        margins = margins_of(logits_NV)
        losses = -functional.logsigmoid(margins)
        if smoothing:
            losses = (1 - smoothing) * losses - smoothing * functional.logsigmoid(-margins)
        return LossSum(losses.sum(), int((margins > 0).sum()))

    def same(self, one_NV: Tensor, other_NV: Tensor) -> Tensor:
        """Of a pair of texts: which is the better one."""
        return (margins_of(one_NV) > 0) == (margins_of(other_NV) > 0)

    def scores(self) -> Scores:
        return _PairScores()


def margins_of(logits_NV: Tensor) -> Tensor:
    better, worse = logits_NV.float().view(-1, 2).unbind(dim=1)
    return better - worse


class _PairScores(Scores):
    def __init__(self) -> None:
        self._margins: list[Tensor] = []

    def add(self, logits_NV: Tensor, batch: "Batch") -> None:
        self._margins.append(margins_of(logits_NV).double().cpu())

    def metrics(self, mean_loss: float) -> dict[str, float]:
        margins = torch.cat(self._margins)
        return {"pair_accuracy": float((margins > 0).double().mean()), "margin": float(margins.mean())}
