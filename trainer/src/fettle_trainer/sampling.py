"""Which rows each step of a run learns: made epoch by epoch from the seed, so that every attempt finds the
same, wherever it goes on."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .collate import epoch_windows, shuffled
from .data import TokenRows
from .events import EventLog
from .spec import TrainSpec
from .tensor_files import integers

_MOST_CLASSES_TOLD = 8


class Windows:
    """`by_length`: rows of like length are put into one step."""

    def __init__(self, spec: TrainSpec, rows: TokenRows, rows_per_step: int, *, by_length: bool) -> None:
        self._rows, self._rows_per_step, self._by_length = rows, rows_per_step, by_length
        self._seed = spec.seed
        self._draw = balanced_draw if spec.hyperparameters.sampling == "balanced" else shuffled
        self._epoch, self._windows = -1, list[list[int]]()

    def of(self, epoch: int) -> list[list[int]]:
        """Rows of each optimiser step of an epoch."""
        if self._epoch != epoch:
            seed = (self._seed * 1_000_003 + epoch) % 2**63
            self._windows = epoch_windows(
                self._rows, self._rows_per_step, seed, by_length=self._by_length, draw=self._draw
            )
            self._epoch = epoch
        return self._windows

    def tell(self, log: EventLog, labels: Sequence[str]) -> None:
        """Where some rows are drawn more often than others: how often."""
        if self._draw is shuffled:
            return
        drawn = [row for window in self.of(0) for row in window]
        counts = self._rows.labels.bincount(minlength=len(labels))
        seen = self._rows.labels[torch.tensor(drawn)].bincount(minlength=len(labels))
        classes = sorted(zip(integers(counts), integers(seen), labels, strict=True))
        occurring = [one for one in classes if one[0]]
        named = ", ".join(
            f'"{name}" {times} of {have} rows' for have, times, name in occurring[:_MOST_CLASSES_TOLD]
        )
        more = len(occurring) - _MOST_CLASSES_TOLD
        often = Counter(Counter(drawn).values())
        often[0] = len(self._rows) - len(set(drawn))
        told = ", ".join(f"{often[times]} {_times(times)}" for times in sorted(often) if often[times])
        log.log(
            "info",
            f"Each epoch draws {len(drawn)} rows, of every class as many: {named}"
            f"{f' and {more} classes more' if more > 0 else ''}. Of the rows, in the first epoch, {told}; "
            "which ones changes from epoch to epoch.",
            rows_by_times={str(times): often[times] for times in sorted(often)},
        )


def _times(count: int) -> str:
    return {0: "are not drawn", 1: "are drawn once"}.get(count, f"{count} times")


def balanced_draw(rows: TokenRows, generator: torch.Generator) -> list[int]:
    """As many rows as there are, in random order: of each class as many as of any other, or one more, and of
    the rows of one class each as often as any other, or once more."""
    classes = cast("Tensor", cast("Any", rows.labels).unique())
    share, left = divmod(len(rows), len(classes))
    one_more = torch.randperm(len(classes), generator=generator)[:left]
    drawn: list[Tensor] = []
    for index, label in enumerate(classes):
        members = (rows.labels == label).nonzero()[:, 0]
        wanted = share + int((one_more == index).any())
        rounds = [
            members[torch.randperm(len(members), generator=generator)]
            for _ in range(-(-wanted // len(members)))
        ]
        drawn.append(torch.cat(rounds)[:wanted])
    together = torch.cat(drawn)
    return integers(together[torch.randperm(len(together), generator=generator)])
