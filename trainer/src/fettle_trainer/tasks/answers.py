"""A question and a text that holds its answer: the model marks where the answer begins and ends. Where there
is none, both marks stand at the first token.

A long text is cut into windows that overlap; the question stands before each, and a window without the whole
answer learns that it has none. `aux`: the marks of each token, then token types where the model has them.
`label`: the row's line, so that windows of one question are judged together.
Legend: N tokens, W windows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..loss import LossSum
from ..messages import PromptError
from ..tensor_files import parts_of
from .objective import Feed, Objective, RowReader, Scores, TokenRow, text_of

if TYPE_CHECKING:
    from ..collate import Batch
    from ..tokenizer import Window

_START, _END, _CONTEXT = 1, 2, 4
# A target is the marks of a token and, above them, its row's line.
_LINE = 8
# Longer answers are not looked for.
MOST_ANSWER_TOKENS = 64
_SAME = 0.1


class Answers(Objective):
    auto_class = "AutoModelForQuestionAnswering"
    peft_task = "QUESTION_ANS"
    reads = "spans"
    has_head = True

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        given = row.get("answers")
        if not isinstance(given, list):
            raise PromptError(
                "row_kind", "The row has no list 'answers': it is of another kind than the task."
            )
        windows = reader.prompts.windows(text_of(row, "question"), text_of(row, "context"), reader.max_length)
        answers = cast("list[dict[str, Any]]", given)
        line = int(row.get("line", 0))
        return [TokenRow(window.ids, _marks(window, answers) + window.types, line) for window in windows]

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        marks, types = aux[: len(ids)], aux[len(ids) :]
        targets = marks + _LINE * label
        return [Feed(ids, torch.arange(len(ids)), targets, types if len(types) else None)]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return num_rows

    def num_losses(self, batch: "Batch") -> float:
        return len(batch.target_counts)

    def num_answers(self, batch: "Batch") -> int:
        return len(batch.target_counts)

    def loss(self, logits_NV: Tensor, batch: "Batch", smoothing: float) -> LossSum:
        """One loss a window: the mean of those of start and end, over the window's own tokens."""
        total, correct = logits_NV.float().sum() * 0.0, 0
        for logits, targets in _by_window(logits_NV, batch):
            goals = torch.stack([_place_of(targets, _START), _place_of(targets, _END)])
            found = logits.float().t()
            total = (
                total + functional.cross_entropy(found, goals, reduction="sum", label_smoothing=smoothing) / 2
            )
            correct += int((found.argmax(dim=-1) == goals).all())
        return LossSum(total, correct)

    def same(self, one_NV: Tensor, other_NV: Tensor) -> Tensor:
        """Scores of a token that change no span's odds by more than a tenth or so."""
        return (one_NV - other_NV).abs().amax(dim=-1) < _SAME

    def scores(self) -> Scores:
        return _AnswerScores()


def _marks(window: "Window", answers: Sequence[Mapping[str, Any]]) -> list[int]:
    """Of the first answer, the one that is learnt."""
    marks = [_CONTEXT if span is not None else 0 for span in window.spans]
    first, last = 0, 0
    if answers:
        start = int(answers[0]["start"])
        end = start + len(str(answers[0]["text"]))
        inside = [
            i for i, span in enumerate(window.spans) if span is not None and span[0] < end and span[1] > start
        ]
        whole = inside and _reach(window, inside[0])[0] <= start and _reach(window, inside[-1])[1] >= end
        if whole:
            first, last = inside[0], inside[-1]
    marks[first] |= _START
    marks[last] |= _END
    return marks


def _reach(window: "Window", token: int) -> tuple[int, int]:
    return cast("tuple[int, int]", window.spans[token])


def _place_of(targets_N: Tensor, mark: int) -> Tensor:
    return ((targets_N & mark) != 0).int().argmax()


def _by_window(logits_NV: Tensor, batch: "Batch") -> Iterator[tuple[Tensor, Tensor]]:
    counts = batch.target_counts
    return zip(parts_of(logits_NV, counts), parts_of(batch.targets_N, counts), strict=True)


@dataclass(frozen=True, slots=True)
class Found:
    """Tokens `first` to `last` of a window, both inside; `score` is that of the marks less that of no
    answer."""

    first: int
    last: int
    score: float


def best_span(logits_NV: Tensor, is_context_N: Tensor) -> Found | None:
    """The best span of the context, or None where it has no token."""
    start, end = logits_NV.float().unbind(dim=1)
    none = float(start[0] + end[0])
    both = start[:, None] + end[None, :]
    allowed = is_context_N[:, None] & is_context_N[None, :]
    allowed = (
        allowed & torch.ones_like(allowed).triu() & torch.ones_like(allowed).tril(MOST_ANSWER_TOKENS - 1)
    )
    if not bool(allowed.any()):
        return None
    place = int(both.masked_fill(~allowed, -torch.inf).argmax())
    first, last = divmod(place, len(start))
    return Found(first, last, float(both[first, last]) - none)


@dataclass(slots=True)
class _Question:
    """`hits`: tokens found that are the answer's. `found` 0: no answer."""

    score: float = 0.0
    exact: bool = True
    hits: int = 0
    found: int = 0
    wanted: int = 0


class _AnswerScores(Scores):
    """In tokens: exact match, and the overlap of found and marked tokens. The best window speaks."""

    def __init__(self) -> None:
        self._questions: dict[int, _Question] = {}

    def add(self, logits_NV: Tensor, batch: "Batch") -> None:
        for logits, targets in _by_window(logits_NV, batch):
            question = self._questions.setdefault(int(targets[0]) // _LINE, _Question())
            first, last = int(_place_of(targets, _START)), int(_place_of(targets, _END))
            # The first token is never the context's: marks there say that this window has no answer.
            wanted = 0 if last == 0 else last - first + 1
            question.wanted = max(question.wanted, wanted)
            span = best_span(logits, (targets & _CONTEXT) != 0)
            if span is None or span.score <= question.score:
                continue
            question.score = span.score
            question.found = span.last - span.first + 1
            question.hits = 0 if not wanted else max(0, min(last, span.last) - max(first, span.first) + 1)
            question.exact = wanted > 0 and (first, last) == (span.first, span.last)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        asked = list(self._questions.values())
        exact = [one.exact if one.found else one.wanted == 0 for one in asked]
        overlap = [
            2 * one.hits / (one.found + one.wanted) if one.found + one.wanted else 1.0 for one in asked
        ]
        return {"exact_match": sum(exact) / len(asked), "f1": sum(overlap) / len(asked)}
