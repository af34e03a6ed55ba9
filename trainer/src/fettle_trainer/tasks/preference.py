"""Two answers to one conversation: a decoder learns to say the preferred one rather than the other, measured
against what it said before the run (direct preference optimisation, Rafailov et al. 2023).

    loss = -log sigmoid(beta * ((p - p0) - (o - o0)))

p, o: log-probability of the preferred and the other answer, summed over its tokens; p0, o0: by the starting
model, an adapter it began with included, in the rows' `reference`. A reward is beta * (p - p0).

`ids`: the preferred conversation, then the other. `aux`: 1 at tokens learnt. `label`: tokens of the first.
Legend: B rows, N answer tokens, V vocabulary.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..loss import LossSum
from ..messages import PromptError
from .chat import answer_feed
from .objective import Feed, Objective, RowReader, Scores, Settings, TokenRow

if TYPE_CHECKING:
    from ..collate import Batch
    from ..data import TokenRows
    from ..prompt import TrainingSequence


class Preference(Objective):
    auto_class = "AutoModelForCausalLM"
    peft_task = "CAUSAL_LM"
    reads = "vocabulary"
    has_head = False
    needs_reference = True

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta

    def tuned(self, settings: Settings, rows: "TokenRows") -> "Preference":
        return Preference(settings.beta)

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        preferred, other = (_answer(row, name, reader) for name in ("preferred", "non_preferred"))
        if preferred.ids == other.ids:
            raise PromptError("same_answers", "Both answers are the same to the model: there is no choice.")
        learn = [int(one) for one in preferred.learn + other.learn]
        return [TokenRow(preferred.ids + other.ids, learn, len(preferred.ids))]

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        end = int(label)
        return [answer_feed(ids[:end], aux[:end]), answer_feed(ids[end:], aux[end:])]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return int(aux.sum())

    def num_losses(self, batch: "Batch") -> float:
        return len(batch.rows)

    def num_answers(self, batch: "Batch") -> int:
        return len(batch.rows)

    def reference(self, logits_NV: Tensor, batch: "Batch") -> Tensor:
        """B x 2: the log-probability of each answer."""
        losses_N = functional.cross_entropy(logits_NV.float(), batch.targets_N, reduction="none")
        sums = [part.sum() for part in torch.split(losses_N, list(batch.target_counts))]
        return -torch.stack(sums).view(-1, 2)

    def loss(self, logits_NV: Tensor, batch: "Batch", smoothing: float) -> LossSum:
        """One loss a row. Smoothing: that part of the preferences is taken to be the wrong way round."""
        margins_B = self.rewards(logits_NV, batch) @ torch.tensor([1.0, -1.0], device=logits_NV.device)
        losses_B = -functional.logsigmoid(margins_B)
        if smoothing:
            losses_B = (1 - smoothing) * losses_B - smoothing * functional.logsigmoid(-margins_B)
        return LossSum(losses_B.sum(), int((margins_B > 0).sum()))

    def rewards(self, logits_NV: Tensor, batch: "Batch") -> Tensor:
        """B x 2, of the preferred and of the other answer."""
        return self.beta * (self.reference(logits_NV, batch) - cast("Tensor", batch.reference))

    def scores(self) -> Scores:
        return _Rewards(self)


class _Rewards(Scores):
    def __init__(self, objective: Preference) -> None:
        self._objective = objective
        self._rewards: list[Tensor] = []

    def add(self, logits_NV: Tensor, batch: "Batch") -> None:
        self._rewards.append(self._objective.rewards(logits_NV, batch).cpu())

    def metrics(self, mean_loss: float) -> dict[str, float]:
        preferred, other = torch.cat(self._rewards).double().unbind(dim=1)
        return {
            "reward_accuracy": float((preferred > other).double().mean()),
            "reward_margin": float((preferred - other).mean()),
            "reward_preferred": float(preferred.mean()),
            "reward_non_preferred": float(other.mean()),
        }


def _answer(row: Mapping[str, Any], name: str, reader: RowReader) -> "TrainingSequence":
    """The conversation with this answer; nothing before it is learnt."""
    if not isinstance(row.get("messages"), list) or not isinstance(row.get(name), list):
        raise PromptError(
            "row_kind", f"The row has no messages or no {name!r}: it is of another kind than the task."
        )
    before = [{**message, "weight": 0} for message in cast("list[dict[str, Any]]", row["messages"])]
    sequences = reader.prompts.chat_sequences([*before, *row[name]], row.get("tools"))
    if len(sequences) > 1:
        raise PromptError(
            "answers_apart",
            f"The model's template shows the {len(sequences)} assistant turns of {name!r} one without the "
            "other, so they have no probability together. Keep one assistant turn in each answer.",
        )
    [sequence] = sequences
    if len(sequence.ids) > reader.max_length:
        raise PromptError(
            "too_long",
            f"The conversation with its {name!r} answer has {len(sequence.ids)} tokens, more than max_length "
            f"{reader.max_length}. Shorten the row or raise max_length.",
        )
    if not any(sequence.learn[1:]):
        raise PromptError("no_answer", f"{name!r} has no token to learn: write the answer.")
    return sequence
