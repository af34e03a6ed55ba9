"""Prints this machine's matrix-product rate: {"gflops": {"float32": ..., "bfloat16": ...}} on stdout.

Shapes are those of the models trained here: tokens of a step times hidden sizes of SmolLM2-135M.
"""

import json
import statistics
import sys
import time

import torch

TOKENS, HIDDEN, INNER = 1024, 576, 1536


def rate(dtype: torch.dtype, seconds: float) -> float:
    """Median GFLOP/s of TOKENS x HIDDEN x INNER products, repeated for `seconds`."""
    left, right = torch.randn(TOKENS, HIDDEN).to(dtype), torch.randn(HIDDEN, INNER).to(dtype)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(10):
            left @ right
        rates.append(10 * 2 * TOKENS * HIDDEN * INNER / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)


torch.set_num_threads(int(sys.argv[1]))
found = {str(dtype).removeprefix("torch."): rate(dtype, 2.0) for dtype in (torch.float32, torch.bfloat16)}
print(json.dumps({"gflops": found}))
