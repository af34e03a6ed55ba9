"""Canonical rows (packages/contract/src/rows.ts) to token ids, once; kept on disk for the next attempt.

Every row is either used whole, cut and counted, or refused with its line, a rule and a reason.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch
from torch import Tensor

from .checksums import CODE_SHA256, file_sha256
from .failure import TrainFailure
from .messages import PromptError
from .prompt import PromptEncoder
from .spec import Task
from .tasks import objective_of
from .tasks.objective import TokenRow
from .tasks.seq2seq import SEQ2SEQ_LABEL
from .tensor_files import integers
from .token_cache import TokenCache

MOST_REFUSALS_TOLD = 1000


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that cannot be used. `rule` is a stable name."""

    line: int
    rule: str
    message: str


_TENSORS = ("ids", "starts", "aux", "aux_starts", "labels", "lines")


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Tokenised rows in flat tensors. Row i is `ids[starts[i]:starts[i + 1]]`.

    What `aux` and `labels` hold is said by each task in `tasks/`. `reference`: R x K, fp32, what another
    model said of each row; not part of `tensors`.
    """

    ids: Tensor
    starts: Tensor
    aux: Tensor
    aux_starts: Tensor
    labels: Tensor
    lines: Tensor
    lengths: list[int] = field(default_factory=list[int])
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        ids, aux = integers(self.starts.diff()), integers(self.aux_starts.diff())
        written = [
            a if label == SEQ2SEQ_LABEL else 0 for a, label in zip(aux, integers(self.labels), strict=True)
        ]
        object.__setattr__(self, "lengths", [max(a, b) for a, b in zip(ids, written, strict=True)])

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "TokenRows":
        """The inverse of `tensors`."""
        ids, starts, aux, aux_starts, labels, lines = (tensors[name] for name in _TENSORS)
        return cls(ids, starts, aux, aux_starts, labels, lines)

    def tensors(self) -> dict[str, Tensor]:
        return {name: cast("Tensor", getattr(self, name)) for name in _TENSORS}

    def __len__(self) -> int:
        return len(self.labels)

    def ids_of(self, row: int) -> Tensor:
        return self.ids[int(self.starts[row]) : int(self.starts[row + 1])].long()

    def aux_of(self, row: int) -> Tensor:
        return self.aux[int(self.aux_starts[row]) : int(self.aux_starts[row + 1])].long()

    def num_tokens(self, row: int) -> int:
        """Tokens read, and for seq2seq those written."""
        ids = int(self.starts[row + 1] - self.starts[row])
        aux = int(self.aux_starts[row + 1] - self.aux_starts[row])
        return ids + (aux if self.labels[row] == SEQ2SEQ_LABEL else 0)

    def num_label_tokens(self, task: Task) -> int:
        return objective_of(task).num_targets(len(self), self.aux)

    @classmethod
    def joined(cls, parts: Sequence["TokenRows"]) -> "TokenRows":
        """One part after the other; without `reference`."""
        return cls(
            ids=torch.cat([part.ids for part in parts]),
            starts=_starts([one for part in parts for one in integers(part.starts.diff())]),
            aux=torch.cat([part.aux for part in parts]),
            aux_starts=_starts([one for part in parts for one in integers(part.aux_starts.diff())]),
            labels=torch.cat([part.labels for part in parts]),
            lines=torch.cat([part.lines for part in parts]),
        )

    def select(self, rows: Sequence[int]) -> "TokenRows":
        index = torch.tensor(rows, dtype=torch.long)
        empty = torch.zeros(0, dtype=torch.int32)
        return TokenRows(
            ids=torch.cat([self.ids_of(row).int() for row in rows] or [empty]),
            starts=_starts([int(self.starts[row + 1] - self.starts[row]) for row in rows]),
            aux=torch.cat([self.aux_of(row).int() for row in rows] or [empty]),
            aux_starts=_starts([int(self.aux_starts[row + 1] - self.aux_starts[row]) for row in rows]),
            labels=self.labels[index],
            lines=self.lines[index],
            reference=None if self.reference is None else self.reference[index],
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """`refused` holds the first 1000; `num_refused` counts all."""

    rows: TokenRows
    refused: list[Refusal]
    num_refused: int
    num_truncated: int

    @classmethod
    def joined(cls, parts: Sequence["Dataset"]) -> "Dataset":
        """Files that were tokenised one by one, as one. A single part stays mapped, not copied."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            TokenRows.joined([part.rows for part in parts]),
            [one for part in parts for one in part.refused][:MOST_REFUSALS_TOLD],
            sum(part.num_refused for part in parts),
            sum(part.num_truncated for part in parts),
        )


@dataclass(frozen=True, slots=True)
class Tokeniser:
    """Rows of one task to ids. `max_length` bounds the tokens of a row (of each side, for seq2seq)."""

    prompts: PromptEncoder
    task: Task
    max_length: int
    labels: tuple[str, ...] | None = None

    def encode(self, row: dict[str, Any]) -> list[TokenRow]:
        """Sequences of one row. Raises PromptError when it cannot be used."""
        return objective_of(self.task).encode(row, self)

    def key(self, content_sha256: str, tokenizer_sha256: str) -> str:
        """Name of the cache: changes with anything that changes an id."""
        # Tokens outlive an upgrade.
        parts = [CODE_SHA256, tokenizers.__version__, self.task, self.max_length, self.labels]
        parts += [content_sha256, tokenizer_sha256, self.prompts.template_hash()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load_dataset(
    path: Path,
    tokeniser: Tokeniser,
    *,
    cache: Path,
    tokenizer_sha256: str,
    before_row: Callable[[], None] = lambda: None,
) -> Dataset:
    """Tokenises `path`, or reads what an earlier run left. Raises TrainFailure for broken lines."""
    key = tokeniser.key(file_sha256(path), tokenizer_sha256)
    kept = TokenCache(cache)
    known = kept.read(key)
    if known is not None:
        tensors, facts = known
        refused = [Refusal(line, rule, message) for line, rule, message in facts["refused"]]
        return Dataset(TokenRows.of(tensors), refused, facts["num_refused"], facts["num_truncated"])
    dataset = _tokenise(path, tokeniser, before_row)
    told = [[one.line, one.rule, one.message] for one in dataset.refused]
    counts = {"num_refused": dataset.num_refused, "num_truncated": dataset.num_truncated}
    kept.write(key, dataset.rows.tensors(), {"refused": told, **counts})
    return dataset


def _tokenise(path: Path, tokeniser: Tokeniser, before_row: Callable[[], None]) -> Dataset:
    rows: list[tuple[TokenRow, int]] = []
    refused: list[Refusal] = []
    num_refused = 0
    for number, row in _read_rows(path):
        before_row()
        line = int(row.get("line", number))
        try:
            sequences = tokeniser.encode(row)
        except PromptError as error:
            num_refused += 1
            if len(refused) < MOST_REFUSALS_TOLD:
                refused.append(Refusal(line, error.rule, str(error)))
            continue
        rows += [(sequence, line) for sequence in sequences]
    rows = list(objective_of(tokeniser.task).arranged(rows, tokeniser.max_length))
    return Dataset(
        TokenRows(
            ids=torch.tensor([i for one, _ in rows for i in one.ids], dtype=torch.int32),
            starts=_starts([len(one.ids) for one, _ in rows]),
            aux=torch.tensor([i for one, _ in rows for i in one.aux], dtype=torch.int32),
            aux_starts=_starts([len(one.aux) for one, _ in rows]),
            labels=torch.tensor([one.label for one, _ in rows], dtype=torch.long),
            lines=torch.tensor([line for _, line in rows], dtype=torch.long),
        ),
        refused,
        num_refused,
        sum(one.truncated for one, _ in rows),
    )


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value: Any = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _broken_line(path, number, str(error)) from error
            if not isinstance(value, dict):
                raise _broken_line(path, number, "not an object")
            yield number, cast("dict[str, Any]", value)


def _broken_line(path: Path, number: int, why: str) -> TrainFailure:
    return TrainFailure(
        "invalid_training_file",
        f"Line {number} of {path.name} is not a row: {why}.",
        "Upload the file again; the rows are made from it.",
    )


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.long).cumsum(0)
