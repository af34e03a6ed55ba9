"""Rows to compare models by: what the run held out, or a few texts that come with the trainer."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..collate import Batch, Collator
from ..data import Tokeniser, TokenRows, load_dataset
from ..joint import joint_loss
from ..models import Loaded
from ..spec import Task
from ..step import Stepper
from ..tasks import Objective, objective_of

_MOST_ROWS = 32
_MOST_TOKENS = 512
# Answers are kept as float32: 128 MB.
_MOST_LOGITS = 2**25
# Comparing weighs no classes: no rows are counted.
_NONE, _START = torch.zeros(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
_NO_ROWS = TokenRows(_NONE, _START, _NONE, _START, _NONE, _NONE)
_TEXTS = (
    "The invoice of last month is wrong: it lists two users, and we have one.",
    "How do I reset the password of an account that nobody uses any more?",
    "Rain is expected in the north on Tuesday, with sunny spells in the afternoon.",
    "Die Bestellung kam pünktlich an, aber die Verpackung war beschädigt.",
    "A heap is a tree in which every parent is at least as large as its children.",
    "Please cancel my order and refund 49.90 to the card ending in 1234.",
)


@dataclass(frozen=True, slots=True)
class Asking:
    """How rows become questions, and answers a loss: the same for every reader of a model. `target_mean`,
    `target_std`: what a model of numbers learnt them by."""

    task: Task
    pad_id: int
    start_id: int
    pooling: str
    target_mean: float = 0.0
    target_std: float = 1.0
    class_weights: str = "none"
    beta: float = 0.1
    distill_weight: float = 0.0
    distill_temperature: float = 1.0

    @classmethod
    def of(cls, loaded: Loaded, facts: Mapping[str, Any]) -> "Asking":
        """`facts`: what fettle.json says."""
        target = facts.get("target") or {"mean": 0.0, "std": 1.0}
        return cls(
            facts["task"], loaded.pad_id, loaded.start_id, loaded.pooling, target["mean"], target["std"]
        )

    @property
    def objective(self) -> Objective:
        return objective_of(self.task).tuned(self, _NO_ROWS)

    @property
    def collate(self) -> Collator:
        return Collator(self.task, packed=False, pad_id=self.pad_id, start_id=self.start_id)


@dataclass(frozen=True, slots=True)
class Sample:
    """`source` tells whether a loss over them means something: no model has seen the held-out rows."""

    rows: TokenRows
    source: Literal["held_out", "built_in"]


@dataclass(frozen=True, slots=True)
class Score:
    """Over the rows of a sample. `logits_NV`: at every target, as one model answers."""

    logits_NV: Tensor
    loss: float
    accuracy: float
    metrics: dict[str, float]


def sample_of(
    loaded: Loaded, task: Task, labels: tuple[str, ...] | None, *, run: Path | None, scratch: Path
) -> Sample:
    """Raises TrainFailure when a line of the held-out file is broken."""
    tokeniser = Tokeniser(loaded.prompts, task, min(_MOST_TOKENS, loaded.max_length), labels)
    held_out = None if run is None else _held_out(run)
    if held_out is not None:
        rows = _tokenised(tokeniser, held_out.read_text(encoding="utf-8").splitlines(), scratch)
        if len(rows):
            return Sample(_bounded(loaded, rows, task), "held_out")
    built_in = [json.dumps({"line": line, **row}) for line, row in enumerate(_built_in(task, labels), 1)]
    return Sample(_bounded(loaded, _tokenised(tokeniser, built_in, scratch), task), "built_in")


def score(loaded: Loaded, asking: Asking, rows: TokenRows) -> Score:
    """Of a model in memory."""
    stepper = Stepper(loaded, asking.task)
    return score_of(rows, asking, lambda row, _: stepper.answers(rows, [row]))


def score_of(rows: TokenRows, asking: Asking, answers: Callable[[int, Batch], Tensor]) -> Score:
    """Row by row, so that no model sees padding that another does not."""
    objective, collate = asking.objective, asking.collate
    scores = objective.scores()
    found, batches = list[Tensor](), list[Batch]()
    total, correct, losses, count = 0.0, 0, 0.0, 0
    for row in range(len(rows)):
        batch = collate(rows, [row])
        logits = answers(row, batch)
        if objective.needs_reference:
            # A model is compared with itself: nothing said before is taken off.
            batch = replace(batch, reference=torch.zeros_like(objective.reference(logits, batch)))
        found.append(logits)
        batches.append(batch)
        losses += objective.num_losses(batch)
        count += objective.num_answers(batch)
        scores.add(logits, batch)
        if not objective.joint:
            loss = objective.loss(logits.clone(), batch, 0.0)
            total += float(loss.total)
            correct += loss.num_correct
    if objective.joint:
        total, correct = joint_loss(torch.cat(found), batches, objective)
    mean = total / losses
    return Score(torch.cat(found), mean, correct / count, scores.metrics(mean))


def agreement(asking: Asking, one_NV: Tensor, other_NV: Tensor) -> float:
    """Share of the answers that are the same."""
    return float(asking.objective.same(one_NV, other_NV).float().mean())


def _held_out(run: Path) -> Path | None:
    """Where the run's spec says, or in its folder: the home may have been moved since. The spec may be of an
    older Fettle and lack fields of ours."""
    if not (run / "spec.json").is_file():
        return None
    told = json.loads((run / "spec.json").read_text(encoding="utf-8"))["data"]["validation_path"]
    if told is None:
        return None
    return next((path for path in (Path(told), run / "rows" / Path(told).name) if path.is_file()), None)


def _tokenised(tokeniser: Tokeniser, lines: Sequence[str], scratch: Path) -> TokenRows:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(f"{line}\n" for line in islice(lines, _MOST_ROWS)), encoding="utf-8")
        return load_dataset(path, tokeniser, cache=Path(folder) / "cache", tokenizer_sha256="").rows


def _bounded(loaded: Loaded, rows: TokenRows, task: Task) -> TokenRows:
    width = int(loaded.model.config.get_text_config().vocab_size)
    kept = len(rows)
    while kept > 1 and rows.select(range(kept)).num_label_tokens(task) * width > _MOST_LOGITS:
        kept -= 1
    return rows.select(range(kept))


def _built_in(task: Task, labels: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """Each row has the fields of every task; of conversations and of plain texts only what is asked."""
    label = (labels or ("",))[0]
    rows: list[dict[str, Any]] = []
    for text, other in zip(_TEXTS, (*_TEXTS[1:], _TEXTS[0]), strict=True):
        if objective_of(task).needs_reference:
            better, worse = ([{"role": "assistant", "content": words}] for words in (other, text))
            messages = [{"role": "user", "content": text}]
            rows.append({"messages": messages, "preferred": better, "non_preferred": worse})
            continue
        rows.append(
            {
                **{"text": text, "label": label, "labels": [label], "score": 0.0, "entities": []},
                **{"prompt": text, "completion": other, "chosen_text": other, "rejected_text": text},
                **{"question": other, "context": text, "answers": [], "anchor": text, "positive": other},
            }
        )
    return rows
