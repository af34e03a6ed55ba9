"""``watch_steps.py SPEC.json RESULT.json``: our trainer on one spec, some steps under PyTorch's profiler.

Writes where their time went: {"steps", "tokens", "seconds", "plain_seconds", "parts": [{"part", "kind",
"seconds"}]}. `seconds` is wall time under the profiler, `plain_seconds` that of as many steps before it. A
part is what asked for an operation (a layer's function, the optimiser), and its kind one of: products of
weights, of adapters, of attention; the other operations; the rest is Python's and the dispatcher's.
"""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from fettle_trainer.light_start import hide_unused_packages

hide_unused_packages()

from torch.profiler import ProfilerActivity, profile  # noqa: E402

from fettle_trainer.__main__ import main  # noqa: E402
from fettle_trainer.step import Stepper  # noqa: E402

WARM_UP, STEPS = 2, 4
# An adapter's products have its rank as one of their sizes, 64 at most for three side by side.
WIDEST_ADAPTER = 64

PARTS = {
    "_Products": "linear layers",
    "_Asked": "before attention",
    "_Answered": "after attention",
    "_Attention": "attention",
    "_RmsNorm": "norms",
    "_HeadLoss": "head and loss",
    "_Lookup": "embedding",
    "Optimizer.step": "optimiser",
    "aten::_foreach_norm": "clipping",
}
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "aten::bmm", "aten::baddbmm")


def part_of(event: Any) -> str:
    """By the nearest of its callers that has a name here."""
    while event is not None:
        name = event.name.removeprefix("autograd::engine::evaluate_function: ")
        for start, part in PARTS.items():
            if name.startswith(start):
                return part
        event = event.cpu_parent
    return "the rest"


def kind_of(event: Any) -> str:
    if not event.name.startswith("aten::"):
        return "python"
    if not event.name.startswith(PRODUCTS):
        return "other operations"
    if "bmm" in event.name:
        return "products of attention"
    sizes = [size for shape in event.input_shapes if len(shape) == 2 for size in shape]
    return "products of adapters" if sizes and min(sizes) <= WIDEST_ADAPTER else "products of weights"


class Watch:
    """Put around the trainer's steps: from the beginning of one to the beginning of a later one."""

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self._begun: list[float] = []
        self._tokens = 0
        self.found: dict[str, Any] | None = None

    def before_step(self) -> None:
        count = len(self._begun)
        if count == WARM_UP + STEPS:
            self._profile.start()
        self._begun.append(time.perf_counter())
        if count == WARM_UP + 2 * STEPS:
            self._profile.stop()
            self.found = self._read()

    def after_step(self, num_tokens: int) -> None:
        if WARM_UP + STEPS < len(self._begun) <= WARM_UP + 2 * STEPS:
            self._tokens += num_tokens

    def _read(self) -> dict[str, Any]:
        seconds = self._begun[-1] - self._begun[-1 - STEPS]
        sums: dict[tuple[str, str], float] = defaultdict(float)
        for event in self._profile.events() or []:
            sums[part_of(event), kind_of(event)] += event.self_cpu_time_total / 1e6
        sums["the rest", "python"] += seconds - sum(sums.values())
        return {
            "steps": STEPS,
            "tokens": self._tokens,
            "seconds": seconds,
            "plain_seconds": self._begun[-1 - STEPS] - self._begun[-1 - 2 * STEPS],
            "parts": [{"part": part, "kind": kind, "seconds": sum_} for (part, kind), sum_ in sums.items()],
        }


def run(spec: str, result: Path) -> int:
    watch, step = Watch(), Stepper.train_step

    def watched(self: Stepper, *given: Any, **named: Any) -> tuple[float, float, int]:
        watch.before_step()
        told = step(self, *given, **named)
        watch.after_step(told[2])
        return told

    Stepper.train_step = watched
    code = main(["train", spec])
    if watch.found is None:
        raise SystemExit(f"the run had fewer than {WARM_UP + 2 * STEPS + 1} steps")
    result.write_text(json.dumps(watch.found), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(sys.argv[2])))
