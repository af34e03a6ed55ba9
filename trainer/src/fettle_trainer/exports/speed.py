"""How much faster one thing is than another, measured in turns so that both meet the same machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

_RUNS = 7


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians in milliseconds. `gain`: how many times as fast."""

    before_ms: float
    after_ms: float
    gain: float
    runs: int


def compared(before: Callable[[], object], after: Callable[[], object]) -> Speed:
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(_RUNS + 1):
        for which, work in enumerate((before, after)):
            begun = time.perf_counter()
            work()
            if turn:  # the first warms up
                times[which].append((time.perf_counter() - begun) * 1000)
    one, other = median(times[0]), median(times[1])
    return Speed(one, other, one / other, _RUNS)
