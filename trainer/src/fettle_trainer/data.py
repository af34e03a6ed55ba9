"""Canonical rows (packages/contract/src/rows.ts) to token ids, once; kept on disk for the next attempt.

Every row is either used whole, cut and counted, or refused with its line, a rule and a reason.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .failure import TrainFailure
from .messages import PromptError
from .prompt import PromptEncoder, TrainingSequence
from .spec import Task
from .tensor_files import TensorFileError, integers, read_metadata, read_tensors, write_tensors

_CACHE_VERSION = 2
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

    `aux` by task: chat, 1 where the token is learnt; seq2seq, the target ids; classification, token types of
    text pairs, empty for single texts. `labels`: class of each row, 0 for other tasks.
    """

    ids: Tensor
    starts: Tensor
    aux: Tensor
    aux_starts: Tensor
    labels: Tensor
    lines: Tensor
    lengths: list[int] = field(default_factory=list[int])

    def __post_init__(self) -> None:
        ids, aux = integers(self.starts.diff()), integers(self.aux_starts.diff())
        object.__setattr__(self, "lengths", [max(a, b) for a, b in zip(ids, aux, strict=True)])

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
        if task == "classification":
            return len(self)
        return int(self.aux.sum()) if task == "chat" else int(self.aux.numel())

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
        )


SEQ2SEQ_LABEL = -1


@dataclass(frozen=True, slots=True)
class Dataset:
    """`refused` holds the first 1000; `num_refused` counts all."""

    rows: TokenRows
    refused: list[Refusal]
    num_refused: int
    num_truncated: int


@dataclass(frozen=True, slots=True)
class _TokenRow:
    ids: list[int]
    aux: list[int]
    label: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Tokeniser:
    """Rows of one task to ids. `max_length` bounds the tokens of a row (of each side, for seq2seq)."""

    prompts: PromptEncoder
    task: Task
    max_length: int
    labels: tuple[str, ...] | None = None

    def encode(self, row: dict[str, Any]) -> list[_TokenRow]:
        """Sequences of one row. Raises PromptError when it cannot be used."""
        if self.task == "classification":
            return [self._classification(row)]
        if self.task == "seq2seq":
            return [self._seq2seq(row)]
        if "messages" in row:
            sequences = self.prompts.chat_sequences(row["messages"], row.get("tools"))
        else:
            sequences = [self.prompts.completion_sequence(_text(row, "prompt"), _text(row, "completion"))]
        return [self._fitted(sequence) for sequence in sequences]

    def key(self, content_sha256: str, tokenizer_sha256: str) -> str:
        """Name of the cache: changes with anything that changes an id."""
        parts = [_CACHE_VERSION, self.task, self.max_length, self.labels, content_sha256, tokenizer_sha256]
        parts.append(self.prompts.template_hash())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _fitted(self, sequence: TrainingSequence) -> _TokenRow:
        """Too long: the conversation ends after its last answer that fits whole. No answer is ever cut."""
        fitting = [end for end in sequence.turn_ends if end <= self.max_length]
        if not fitting:
            raise PromptError(
                "too_long",
                f"The prompt and its first answer have {sequence.turn_ends[0]} tokens, more than max_length "
                f"{self.max_length}. Shorten the row or raise max_length.",
            )
        end = fitting[-1]
        learn = [int(one) for one in sequence.learn[:end]]
        if not any(learn[1:]):
            raise PromptError("no_answer", "No token is left to learn: write the answer.")
        return _TokenRow(sequence.ids[:end], learn, 0, truncated=end < sequence.turn_ends[-1])

    def _classification(self, row: dict[str, Any]) -> _TokenRow:
        known = self.labels or ()
        label = row.get("label")
        if label not in known:
            raise PromptError(
                "unknown_label", f"The label {label!r} is none of the run's {len(known)} labels."
            )
        pair = row.get("text_pair")
        text = self.prompts.classification_text(_text(row, "text"), pair, self.max_length)
        return _TokenRow(text.ids, text.types, known.index(label), truncated=text.truncated)

    def _seq2seq(self, row: dict[str, Any]) -> _TokenRow:
        if not _text(row, "completion").strip():
            raise PromptError("no_answer", "The completion is empty: write the text the model shall answer.")
        source = self.prompts.classification_text(_text(row, "prompt"), None, self.max_length)
        target = self.prompts.seq2seq_target(row["completion"])
        if len(target) > self.max_length:
            raise PromptError(
                "too_long",
                f"The completion has {len(target)} tokens, more than max_length {self.max_length}: it would "
                "be learnt without its end. Shorten the row or raise max_length.",
            )
        return _TokenRow(source.ids, target, SEQ2SEQ_LABEL, truncated=source.truncated)


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise PromptError(
            "row_kind", f"The row has no text field {name!r}: it is of another kind than the task."
        )
    return value


def load_dataset(
    path: Path,
    tokeniser: Tokeniser,
    *,
    cache: Path,
    tokenizer_sha256: str,
    before_row: Callable[[], None] = lambda: None,
) -> Dataset:
    """Tokenises `path`, or reads what an earlier attempt left. Raises TrainFailure for broken lines."""
    key = tokeniser.key(file_sha256(path), tokenizer_sha256)
    stored = cache / f"{key}.safetensors"
    if stored.is_file():
        known = _read_cache(stored, key)
        if known is not None:
            return known
    dataset = _tokenise(path, tokeniser, before_row)
    cache.mkdir(parents=True, exist_ok=True)
    _write_cache(stored, key, dataset)
    return dataset


def _tokenise(path: Path, tokeniser: Tokeniser, before_row: Callable[[], None]) -> Dataset:
    rows: list[tuple[_TokenRow, int]] = []
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


def _write_cache(path: Path, key: str, dataset: Dataset) -> None:
    told = [[one.line, one.rule, one.message] for one in dataset.refused]
    facts = {
        "key": key,
        "refused": told,
        "num_refused": dataset.num_refused,
        "num_truncated": dataset.num_truncated,
    }
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        write_tensors(partial, dataset.rows.tensors(), {"facts": json.dumps(facts)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_cache(path: Path, key: str) -> Dataset | None:
    """None when the file is damaged or foreign: the rows are then tokenised anew."""
    try:
        facts = json.loads(read_metadata(path)["facts"])
        rows = TokenRows.of(read_tensors(path))
    except (OSError, ValueError, KeyError, TensorFileError):
        return None
    if facts.get("key") != key:
        return None
    refused = [Refusal(line, rule, message) for line, rule, message in facts["refused"]]
    return Dataset(rows, refused, facts["num_refused"], facts["num_truncated"])


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_sha256(folder: Path) -> str:
    """Of every file a tokenizer is made from."""
    digest = hashlib.sha256()
    kinds = (".json", ".txt", ".model", ".jinja", ".spm")
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in kinds and "index" not in path.name:
            digest.update(path.name.encode() + b"\0" + file_sha256(path).encode())
    return digest.hexdigest()
