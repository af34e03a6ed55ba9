"""What every task must say of itself: rows to ids, what a model is fed and asked, its loss, its metrics.

    row ── encode ── TokenRow ── feeds ── (collate) ── logits ── loss
                                                          └───── scores ── metrics

A task is one file of this package; nothing else asks which task it is.
Legend: N positions or rows with a target, V classes or vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor

from ..loss import LossSum, summed_cross_entropy
from ..messages import PromptError
from ..prompt import PromptEncoder

if TYPE_CHECKING:
    from ..collate import Batch
    from ..data import TokenRows

# "vocabulary": the output head at the gathered positions. "rows": one answer a sequence. "tokens": a small
# head's answer at the gathered positions. "spans": as tokens, the scores of a start and of an end. "vectors":
# one vector a sequence, pooled from its tokens.
Reads = Literal["vocabulary", "rows", "tokens", "spans", "vectors"]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A tokenised row. What `aux` and `label` hold is the task's own; see `TokenRows`."""

    ids: list[int]
    aux: list[int]
    label: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Feed:
    """One sequence for the model. The output at `places` (positions in `ids`) is asked, for `targets`."""

    ids: Tensor
    places: Tensor
    targets: Tensor
    types: Tensor | None = None


class RowReader(Protocol):
    """The tokeniser a row is read by. `max_length` bounds the tokens of a sequence."""

    @property
    def prompts(self) -> PromptEncoder: ...
    @property
    def max_length(self) -> int: ...
    @property
    def labels(self) -> tuple[str, ...] | None: ...


class Settings(Protocol):
    """What a run may set of a task."""

    @property
    def class_weights(self) -> str: ...
    @property
    def target_mean(self) -> float: ...
    @property
    def target_std(self) -> float: ...
    @property
    def beta(self) -> float: ...
    @property
    def distill_weight(self) -> float: ...
    @property
    def distill_temperature(self) -> float: ...


class Scores(ABC):
    """Takes the answers of an evaluation batch by batch. Keeps no logits."""

    @abstractmethod
    def add(self, logits_NV: Tensor, batch: "Batch") -> None: ...

    @abstractmethod
    def metrics(self, mean_loss: float) -> dict[str, float]: ...


class Objective(ABC):
    """`auto_class`: the class of transformers that has the output. `peft_task`: PEFT's name of the task.
    `has_head`: the output is new for this task, trained and saved with an adapter. `joint`: rows of a step
    are answers to each other, so its loss is made of all of them at once (joint.py). `needs_reference`: the
    loss looks at what the starting model said of each row (`reference`)."""

    auto_class: ClassVar[str]
    peft_task: ClassVar[str]
    reads: ClassVar[Reads]
    has_head: ClassVar[bool]
    joint: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False

    @property
    def reads_some(self) -> bool:
        """Whether tokens that are not asked need no answer."""
        return self.reads in ("rows", "vocabulary")

    def tuned(self, settings: Settings, rows: "TokenRows") -> "Objective":
        """As this run wants it; `rows` are all those to train on."""
        return self

    @property
    def weights(self) -> Sequence[float]:
        """By class or label, where this run weighs them."""
        return ()

    def configure(self, config: Any, labels: Sequence[str] | None) -> None:
        """What the model's config must say before the model is made: here nothing, as it has its output."""
        return

    @abstractmethod
    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        """Sequences of one row. Raises PromptError when it cannot be used."""

    def arranged(
        self, rows: Iterable[tuple[TokenRow, int]], max_length: int
    ) -> Iterable[tuple[TokenRow, int]]:
        """All sequences of a file, each with its line, as they shall be trained on."""
        return rows

    @abstractmethod
    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        """What the model is fed of one tokenised row; `label` has one element."""

    @abstractmethod
    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        """Tokens, or rows, that are learnt; `aux` of all rows."""

    def num_losses(self, batch: "Batch") -> float:
        """What the loss of a batch is a sum of: the caller divides by it."""
        return batch.targets_N.numel()

    def num_answers(self, batch: "Batch") -> int:
        """What `LossSum.num_correct` is a part of."""
        return len(batch.targets_N)

    def row_of(self, batch: "Batch") -> Tensor:
        """Of a joint objective: which row each sequence belongs to, from 0."""
        raise NotImplementedError

    def reference(self, logits_NV: Tensor, batch: "Batch") -> Tensor:
        """B x K: what is kept of another model's answers to the rows of a batch."""
        return logits_NV

    @abstractmethod
    def scores(self) -> Scores: ...

    def same(self, one_NV: Tensor, other_NV: Tensor) -> Tensor:
        """Which answers of two models to the same rows mean the same: here, the likeliest class does."""
        return one_NV.argmax(dim=-1) == other_NV.argmax(dim=-1)

    def loss(self, logits_NV: Tensor, batch: "Batch", smoothing: float) -> LossSum:
        """Summed over the targets; the caller divides by `num_losses` of its window. May destroy the
        logits."""
        return summed_cross_entropy(logits_NV, batch.targets_N, smoothing)


def text_of(row: Mapping[str, Any], name: str) -> str:
    """Raises PromptError when the row has no such text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise PromptError(
            "row_kind", f"The row has no text field {name!r}: it is of another kind than the task."
        )
    return value
