"""Texts in, labels, predictions or vectors out: batches of about the same length, from all requests together.

The oldest waiting text leads: others of its length class join it, whatever request or adapter they belong to.
B texts, T tokens (padded right), D hidden size.
"""

import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .serve_adapters import Adapter, AdapterShelf
from .serve_heads import Head, rows_of_output
from .serve_models import ServedModel

# Padded tokens of one batch: enough to fill a matrix product, little enough to keep others waiting briefly.
BATCH_TOKENS = 4096
MAX_BATCH = 64
SHORTEST_CLASS = 16


@dataclass(slots=True, eq=False)
class EncodeJob:
    """`head` None: vectors are wanted. `results` fills as texts are done: a vector each, or what the head
    says of the text or of each of its tokens. `types` of the tokens, by text, where the model gets them.
    `conclude` makes predictions of all results."""

    id: str
    adapter: Adapter | None
    head: Head | None
    texts: list[list[int]]
    types: list[list[int]] | None = None
    conclude: Callable[[list[Tensor]], list[Any]] | None = None
    results: list[Tensor | None] = field(default_factory=list["Tensor | None"])
    num_left: int = 0
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.results = [None] * len(self.texts)
        self.num_left = len(self.texts)

    @property
    def num_tokens(self) -> int:
        return sum(len(ids) for ids in self.texts)

    @property
    def answers(self) -> list[Tensor]:
        """Of all texts, once none is left."""
        return [result for result in self.results if result is not None]


@dataclass(frozen=True, slots=True)
class _Text:
    job: EncodeJob
    index: int
    ids: list[int]

    @property
    def types(self) -> list[int]:
        return self.job.types[self.index] if self.job.types else []


class EncodeEngine:
    """Not thread-safe: one loop owns it."""

    def __init__(self, served: ServedModel, shelf: AdapterShelf) -> None:
        self._served = served
        self._shelf = shelf
        self._takes = frozenset(inspect.signature(served.trunk.forward).parameters)
        self._waiting: deque[_Text] = deque()

    def submit(self, job: EncodeJob) -> None:
        self._waiting.extend(_Text(job, index, ids) for index, ids in enumerate(job.texts))

    def cancel(self, job_id: str) -> bool:
        before = len(self._waiting)
        self._waiting = deque(text for text in self._waiting if text.job.id != job_id)
        return len(self._waiting) < before

    @torch.inference_mode()
    def step(self) -> list[EncodeJob]:
        """Runs one batch; returns the jobs it completed or failed."""
        batch = self._next_batch()
        if not batch:
            return []
        try:
            self._run(batch)
        except Exception as error:
            failed = {id(text.job): text.job for text in batch}
            for job in failed.values():
                job.error = error
                self.cancel(job.id)
            return list(failed.values())
        done: list[EncodeJob] = []
        for text in batch:
            text.job.num_left -= 1
            if text.job.num_left == 0:
                done.append(text.job)
        return done

    def _next_batch(self) -> list[_Text]:
        if not self._waiting:
            return []
        length_class = _length_class(self._waiting[0].ids)
        room = max(1, min(MAX_BATCH, BATCH_TOKENS // length_class))
        batch: list[_Text] = []
        rest: deque[_Text] = deque()
        for text in self._waiting:
            fits = len(batch) < room and _length_class(text.ids) == length_class
            (batch if fits else rest).append(text)
        self._waiting = rest
        return batch

    def _run(self, batch: list[_Text]) -> None:
        trunk = self._served.trunk
        ids_BT, mask_BT = self._padded([text.ids for text in batch])
        inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if "use_cache" in self._takes:
            inputs["use_cache"] = False
        if "token_type_ids" in self._takes and any(text.types for text in batch):
            types = [text.types or [0] * len(text.ids) for text in batch]
            inputs["token_type_ids"] = _filled(types, ids_BT.shape[1], 0).to(trunk.device)
        with self._shelf.rows([text.job.adapter for text in batch]):
            output = trunk(**inputs)
        rows_of: dict[Head | None, list[int]] = {}
        for row, text in enumerate(batch):
            rows_of.setdefault(text.job.head, []).append(row)
        for head, rows in rows_of.items():
            picked = torch.tensor(rows, device=trunk.device)
            if head is None:
                answers = self._pooled(output.last_hidden_state[picked], mask_BT[picked])
            else:
                logits = head.logits(ids_BT[picked], mask_BT[picked], rows_of_output(output, picked))
                answers = head.answers(logits.float())
            for row, answer in zip(rows, answers.cpu(), strict=True):
                text = batch[row]
                by_token = head is not None and head.by_token
                text.job.results[text.index] = answer[: len(text.ids)] if by_token else answer

    def _padded(self, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        length = max(len(ids) for ids in texts)
        pad_id = int(self._served.tokenizer.pad_token_id or 0)
        ids_BT = _filled(texts, length, pad_id)
        mask_BT = _filled([[1] * len(ids) for ids in texts], length, 0)
        return ids_BT.to(self._served.trunk.device), mask_BT.to(self._served.trunk.device)

    def _pooled(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """B x D vectors of length 1."""
        hidden_BTD = hidden_BTD.float()
        if self._served.pooling.mode == "cls":
            pooled_BD = hidden_BTD[:, 0]
        else:
            weights_BT1 = mask_BT.unsqueeze(-1).float()
            pooled_BD = (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1e-9)
        return functional.normalize(pooled_BD, p=2, dim=-1)


def _filled(rows: list[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def _length_class(ids: list[int]) -> int:
    """The next power of two: padding at most doubles a text."""
    return max(SHORTEST_CLASS, 1 << (len(ids) - 1).bit_length())
