"""``measure.py MODEL FOLDER THREADS PAIRS ROWS...``: seconds of a prompt and of a token step, linear layers
in the plain layout and in ours, on the same weights and the same cache, in turns. JSON on stdout."""

import copy
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from fettle_trainer.fetch import fetch
from fettle_trainer.generate_cache import RowCache
from fettle_trainer.serve_linears import block_linears

PROMPT, STEPS = 60, 8


@torch.inference_mode()
def timed(model: Any, num_rows: int) -> tuple[float, float]:
    """(seconds of a prompt of 60 tokens for each row, seconds of the median token step after it)"""
    cache = RowCache()
    cache.pads = [0] * num_rows
    ids = torch.arange(num_rows * PROMPT).remainder(1000).view(num_rows, PROMPT)
    seconds: list[float] = []
    for chunk in (ids, *[ids[:, :1]] * STEPS):
        inputs = {
            "attention_mask": cache.attention_mask(chunk.shape[1], chunk.device),
            "position_ids": cache.position_ids(chunk.shape[1], chunk.device),
        }
        start = time.perf_counter()
        model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
        seconds.append(time.perf_counter() - start)
    return seconds[0], statistics.median(seconds[1:])


def compare(models: tuple[Any, Any], num_rows: int, pairs: int) -> dict[str, Any]:
    rounds = [[timed(model, num_rows) for model in models] for _ in range(pairs + 1)][1:]
    row: dict[str, Any] = {"rows": num_rows, "pairs": pairs}
    for index, what in enumerate(("prompt", "step")):
        plain = [pair[0][index] for pair in rounds]
        ours = [pair[1][index] for pair in rounds]
        ratios = [one / other for one, other in zip(plain, ours, strict=True)]
        row[what] = {
            "plain_ms": 1000 * statistics.median(plain),
            "ours_ms": 1000 * statistics.median(ours),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
    return row


def main(name: str, folder: Path, numbers: Sequence[int]) -> None:
    threads, pairs, *rows = numbers
    torch.set_num_threads(threads)
    source = fetch(name, folder / name, lambda *_: None)
    plain: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ours = copy.deepcopy(plain)
    count = block_linears(ours)
    table = [compare((plain, ours), number, pairs) for number in rows]
    print(json.dumps({"model": name, "threads": threads, "layers": count, "rows": table}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [int(one) for one in sys.argv[3:]])
