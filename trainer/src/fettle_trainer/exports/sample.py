"""Rows to compare models by: what the run held out, or a few texts that come with the trainer."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..collate import Batch, Collator
from ..data import Tokeniser, TokenRows, load_dataset
from ..models import Loaded
from ..spec import Task, read_spec
from ..step import Stepper
from ..tasks import objective_of

_MOST_ROWS = 32
_MOST_TOKENS = 512
# Answers are kept as float32: 128 MB.
_MOST_LOGITS = 2**25
_TEXTS = (
    "The invoice of last month is wrong: it lists two users, and we have one.",
    "How do I reset the password of an account that nobody uses any more?",
    "Rain is expected in the north on Tuesday, with sunny spells in the afternoon.",
    "Die Bestellung kam pünktlich an, aber die Verpackung war beschädigt.",
    "A heap is a tree in which every parent is at least as large as its children.",
    "Please cancel my order and refund 49.90 to the card ending in 1234.",
)


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


def score(loaded: Loaded, task: Task, rows: TokenRows) -> Score:
    """Of a model in memory."""
    stepper = Stepper(loaded, task)
    return score_of(rows, stepper.collate, lambda row, _: stepper.answers(rows, [row]))


def score_of(rows: TokenRows, collate: Collator, answers: Callable[[int, Batch], Tensor]) -> Score:
    """Row by row, so that no model sees padding that another does not."""
    objective = objective_of(collate.task)
    found: list[Tensor] = []
    total, correct, count = 0.0, 0, 0
    for row in range(len(rows)):
        batch = collate(rows, [row])
        logits = answers(row, batch)
        loss = objective.loss(logits.clone(), batch, 0.0)
        total += float(loss.total)
        correct += loss.num_correct
        count += batch.targets_N.numel()
        found.append(logits)
    return Score(torch.cat(found), total / count, correct / count)


def agreement(one_NV: Tensor, other_NV: Tensor) -> float:
    """Share of the positions at which both find the same answer most likely."""
    return float((one_NV.argmax(-1) == other_NV.argmax(-1)).float().mean())


def _held_out(run: Path) -> Path | None:
    """Where the run's spec says, or in its folder: the home may have been moved since."""
    if not (run / "spec.json").is_file():
        return None
    told = read_spec(run / "spec.json").data.validation_path
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
    pairs = list(zip(_TEXTS, (*_TEXTS[1:], _TEXTS[0]), strict=True))
    if task == "classification":
        return [{"text": text, "label": (labels or ("",))[0]} for text in _TEXTS]
    return [{"prompt": text, "completion": following} for text, following in pairs]
