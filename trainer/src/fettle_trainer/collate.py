"""Which rows make a step, and the tensors of a micro-batch.

    epoch order ── windows (one optimiser step each) ── micro-batches

The windows depend on the number of rows per step alone, never on how a step is cut into micro-batches, so
that 8 x 1, 4 x 2 and 1 x 8 see the same rows and give the same gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from .data import TokenRows
from .packing import filler
from .spec import Task
from .tasks import objective_of
from .tasks.objective import Feed
from .tensor_files import integers

# Rows sorted by length together, in windows: enough to make padding rare, few enough to stay shuffled.
_WINDOWS_SORTED = 32
IGNORED = -100
# On a CPU products gain nothing from more tokens than these, and what is kept of each is memory.
TOKENS_AT_ONCE = 4096

# The rows of an epoch in random order.
Draw = Callable[[TokenRows, torch.Generator], list[int]]


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch.

    Packed (`lengths` set): `input_ids` 1 x S, rows end to end. Padded: `input_ids` B x L, `attention_mask`.
    `gather_N`: flat positions of the model's (decoder) output whose target is `targets_N`. Classification:
    one position a row, its last token when packed, and the classes as targets.
    `num_tokens`: real tokens in it, source and target. `features`: what the base made of each row, in place
    of all inputs (features.py). `target_counts`: targets of each sequence. `reference`: B x K, what another
    model said of each row.
    """

    input_ids: Tensor
    gather_N: Tensor
    targets_N: Tensor
    num_tokens: int
    rows: tuple[int, ...]
    lengths: tuple[int, ...] | None = None
    position_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    decoder_input_ids: Tensor | None = None
    target_lengths: tuple[int, ...] = ()
    features: Tensor | None = None
    target_counts: tuple[int, ...] = ()
    reference: Tensor | None = None

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Tokens of each row of `input_ids`, packed or padded."""
        if self.lengths is not None or self.attention_mask is None:
            return self.lengths or ()
        return tuple(integers(self.attention_mask.sum(dim=1)))

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        moved = {
            name: value.to(device, non_blocking=True)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), Tensor)
        }
        kept = {name: getattr(self, name) for name in self.__slots__ if name not in moved}
        return Batch(**moved, **kept)


@dataclass(frozen=True, slots=True)
class Collator:
    """`start_id` is only read where rows are padded. `fills`: packed rows end with one that nobody asks, so
    that few sizes occur."""

    task: Task
    packed: bool
    pad_id: int
    start_id: int = 0
    fills: bool = False

    def __call__(self, rows: TokenRows, chosen: Sequence[int]) -> Batch:
        if self.task == "seq2seq":
            return self._seq2seq(rows, chosen)
        batch = self._packed(rows, chosen) if self.packed else self._padded(rows, chosen)
        return batch if rows.reference is None else replace(batch, reference=rows.reference[list(chosen)])

    def _feeds(self, rows: TokenRows, chosen: Sequence[int]) -> list[Feed]:
        objective = objective_of(self.task)
        return [
            feed
            for row in chosen
            for feed in objective.feeds(rows.ids_of(row), rows.aux_of(row), rows.labels[row : row + 1])
        ]

    def _packed(self, rows: TokenRows, chosen: Sequence[int]) -> Batch:
        feeds = self._feeds(rows, chosen)
        lengths = [len(feed.ids) for feed in feeds]
        starts = list(accumulate(lengths, initial=0))
        ids = [feed.ids for feed in feeds]
        fill = filler(starts[-1]) if self.fills else 0
        if fill:
            ids.append(torch.full((fill,), self.pad_id))
            lengths.append(fill)
        return Batch(
            input_ids=torch.cat(ids)[None],
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
            lengths=tuple(lengths),
            gather_N=torch.cat([feed.places + start for feed, start in zip(feeds, starts, strict=False)]),
            targets_N=torch.cat([feed.targets for feed in feeds]),
            num_tokens=_num_tokens(rows, chosen),
            rows=tuple(chosen),
            target_counts=_counts(feeds),
        )

    def _padded(self, rows: TokenRows, chosen: Sequence[int]) -> Batch:
        feeds = self._feeds(rows, chosen)
        input_ids, mask = _pad([feed.ids for feed in feeds], self.pad_id)
        width = input_ids.shape[1]
        types = None
        if any(feed.types is not None for feed in feeds):
            given = [torch.zeros_like(feed.ids) if feed.types is None else feed.types for feed in feeds]
            types, _ = _pad(given, 0)
        return Batch(
            input_ids=input_ids,
            attention_mask=mask,
            token_type_ids=types,
            gather_N=torch.cat([feed.places + index * width for index, feed in enumerate(feeds)]),
            targets_N=torch.cat([feed.targets for feed in feeds]),
            num_tokens=_num_tokens(rows, chosen),
            rows=tuple(chosen),
            target_counts=_counts(feeds),
        )

    def _seq2seq(self, rows: TokenRows, chosen: Sequence[int]) -> Batch:
        input_ids, mask = _pad([rows.ids_of(row) for row in chosen], self.pad_id)
        targets = [rows.aux_of(row) for row in chosen]
        labels, _ = _pad(targets, IGNORED)
        # The decoder reads its own target one step late.
        late = [torch.cat([torch.tensor([self.start_id]), target[:-1]]) for target in targets]
        decoder_input_ids, _ = _pad(late, self.pad_id)
        flat = labels.flatten()
        gather = (flat != IGNORED).nonzero()[:, 0]
        return Batch(
            input_ids=input_ids,
            attention_mask=mask,
            decoder_input_ids=decoder_input_ids,
            target_lengths=tuple(len(target) for target in targets),
            gather_N=gather,
            targets_N=flat[gather],
            num_tokens=_num_tokens(rows, chosen),
            rows=tuple(chosen),
        )


def _counts(feeds: Sequence[Feed]) -> tuple[int, ...]:
    return tuple(len(feed.targets) for feed in feeds)


def _pad(parts: Sequence[Tensor], value: int) -> tuple[Tensor, Tensor]:
    """B x L filled up on the right with `value`, and its mask: by length, never by id."""
    lengths = torch.tensor([len(part) for part in parts])
    width = int(lengths.max())
    padded = torch.full((len(parts), width), value, dtype=torch.long)
    for index, part in enumerate(parts):
        padded[index, : len(part)] = part
    return padded, (torch.arange(width)[None] < lengths[:, None]).long()


def _num_tokens(rows: TokenRows, chosen: Sequence[int]) -> int:
    return sum(rows.num_tokens(row) for row in chosen)


def steps_per_epoch(num_rows: int, rows_per_step: int) -> int:
    return -(-num_rows // rows_per_step)


def shuffled(rows: TokenRows, generator: torch.Generator) -> list[int]:
    """Each row once."""
    return integers(torch.randperm(len(rows), generator=generator))


def epoch_windows(
    rows: TokenRows, rows_per_step: int, seed: int, *, by_length: bool, draw: Draw = shuffled
) -> list[list[int]]:
    """Rows of each optimiser step of one epoch. `by_length` puts rows of like length into one step (padded
    models); otherwise they stay as `draw` has them. Each window is longest first."""
    generator = torch.Generator().manual_seed(seed)
    order = draw(rows, generator)
    lengths = rows.lengths
    if by_length:
        span = rows_per_step * _WINDOWS_SORTED
        order = [
            row
            for start in range(0, len(order), span)
            for row in sorted(order[start : start + span], key=lambda row: (-lengths[row], row))
        ]
    windows = [order[start : start + rows_per_step] for start in range(0, len(order), rows_per_step)]
    if by_length and len(windows) > 1:
        windows = [windows[int(i)] for i in torch.randperm(len(windows), generator=generator)]
    return [sorted(window, key=lambda row: (-lengths[row], row)) for window in windows]


def micro_batches(
    window: Sequence[int], rows_per_batch: int, lengths: Sequence[int] | None = None
) -> list[list[int]]:
    """`lengths`: tokens of each row, where no more than `TOKENS_AT_ONCE` are to be together."""
    found: list[list[int]] = []
    room = 0
    for row in window:
        tokens = 0 if lengths is None else lengths[row]
        if not found or len(found[-1]) == rows_per_batch or tokens > room:
            found.append([])
            room = TOKENS_AT_ONCE
        found[-1].append(row)
        room -= tokens
    return found


def bounds_tokens(device: torch.device, *, joint: bool) -> bool:
    """Whether micro-batches are cut by tokens too: on CPUs, unless the loss is made of all rows at once,
    where each cut is paid for with another pass."""
    return device.type == "cpu" and not joint


def evaluation_batches(rows: TokenRows, rows_per_batch: int) -> list[list[int]]:
    """All rows once, longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(rows)), key=lambda row: (-rows.lengths[row], row))
    return micro_batches(order, rows_per_batch)
