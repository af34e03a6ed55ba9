"""What a GPU keeps of a step for its way back, chosen before the first: the fastest way that memory allows.

    everything ──► of fewer rows at once, while they are work enough ──► what goes into each layer, which is
    then computed twice ──► that in the machine's own memory

What was foreseen wrongly is mended as it comes: a step that does not fit takes the next way, or fewer rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from .events import EventLog
from .memory import Work, predict
from .memory_layers import Keeps
from .models import Loaded
from .recompute import compute_again
from .run_rows import RunRows

# Fewer tokens at once leave a large GPU idle; by feel, not measured.
_WORK_ENOUGH = 8192
# Of the memory that is free: what is foreseen is within a tenth or so of what was measured (docs/gpu.md).
_USABLE = 0.85
_WORDS: dict[Keeps, str] = {
    "everything": "nothing is computed twice",
    "inputs": "layers are computed twice, and keep what goes into them alone",
    "nothing": "layers are computed twice, and what goes into them waits in the machine's own memory",
}


@dataclass(frozen=True, slots=True)
class Way:
    """`needed`: bytes that a step takes beside the model."""

    keeps: Keeps
    rows: int
    needed: int


def choose(needed: Callable[[Keeps, int], int], *, rows: int, tokens_per_row: float, usable: float) -> Way:
    """The first way that fits, or the last: then fewer rows are taken as memory runs out."""
    *others, (keeps, count) = _ways(rows, tokens_per_row)
    for one, few in others:
        way = Way(one, few, needed(one, few))
        if way.needed <= usable:
            return way
    return Way(keeps, count, needed(keeps, count))


def _ways(rows: int, tokens_per_row: float) -> Iterator[tuple[Keeps, int]]:
    yield "everything", rows
    fewer = rows // 2
    while fewer and fewer * tokens_per_row >= _WORK_ENOUGH:
        yield "everything", fewer
        fewer //= 2
    yield "inputs", rows
    yield "nothing", rows


class Fit:
    """How a run's steps fit into its GPU. `rows`: at once."""

    def __init__(self, loaded: Loaded, log: EventLog, way: Way) -> None:
        self._loaded, self._log = loaded, log
        self.rows = way.rows
        self._keeps: Keeps = "everything"
        self._take(way.keeps)

    @classmethod
    def of(cls, loaded: Loaded, work: Work, rows: RunRows, *, log: EventLog) -> "Fit | None":
        """None on a CPU, whose memory is foreseen for the user and the server."""
        free = free_bytes(loaded.model.device)
        if free is None:
            return None

        def needed(keeps: Keeps, count: int) -> int:
            some = replace(work, rows_per_batch=count)
            return predict(loaded, some, rows, process_bytes=0, keeps=keeps).of_steps

        lengths = rows.train.lengths
        mean = sum(lengths) / len(lengths)
        way = choose(needed, rows=work.rows_per_batch, tokens_per_row=mean, usable=_USABLE * free)
        asked = Way("everything", work.rows_per_batch, needed("everything", work.rows_per_batch))
        _tell(log, asked, way, free=free)
        return cls(loaded, log, way)

    @property
    def is_last(self) -> bool:
        return self._keeps == "nothing"

    def relieve(self, lack: str, step: int) -> None:
        """Takes the next way after memory did not suffice for one row, from `step` on. Not after the last."""
        self._take("inputs" if self._keeps == "everything" else "nothing")
        self._log.log(
            "warn",
            f"Memory did not suffice for one row at once ({lack}): from step {step} on "
            f"{_WORDS[self._keeps]}.",
            keeps=self._keeps,
        )

    def _take(self, keeps: Keeps) -> None:
        self._keeps = keeps
        if keeps != "everything":
            compute_again(self._loaded.model, offload=keeps == "nothing")


def _tell(log: EventLog, asked: Way, way: Way, *, free: int) -> None:
    fewer = f", with {way.rows} rows at once instead of {asked.rows}" if way.rows < asked.rows else ""
    instead = f", for about {way.needed / 1e9:.1f} GB" if way != asked else ""
    log.log(
        "info",
        f"{free / 1e9:.1f} GB of the GPU are free beside the model, and steps that keep everything for their "
        f"way back need about {asked.needed / 1e9:.1f}: {_WORDS[way.keeps]}{fewer}{instead}.",
        keeps=way.keeps,
        rows_per_batch=way.rows,
        needed_bytes=way.needed,
        free_bytes=free,
    )


def free_bytes(device: torch.device) -> int | None:
    """Of a GPU's own memory; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free
