"""Where and in which number type to train."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from .failure import TrainFailure
from .spec import Runtime

# Below this gain bf16 costs precision for nothing.
_WORTHWHILE = 1.3
# Products that after three turns still take so many times as long as in fp32 are not measured again.
_HOPELESS, _TURNS_AT_LEAST = 4.0, 3
_TURNS, _TURN_SECONDS = 8, 0.0125
# So small a product, on one thread, ends before anything else gets the processor; two threads wait for
# each other.
_SIZE = 256


@dataclass(frozen=True, slots=True)
class Compute:
    """`reason` says in words why this dtype; it goes into the run's log."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose_compute(runtime: Runtime, known_dtype: str | None = None, *, alone: bool = True) -> Compute:
    """`known_dtype`: what an earlier attempt chose; kept, so that a resumed run gives the same bits.
    `alone`: no other rank, which might measure something else, has to choose the same.
    fp16 is never chosen. Raises TrainFailure when CUDA is asked for and absent."""
    cuda = torch.cuda.is_available()
    if runtime.device == "cuda" and not cuda:
        raise TrainFailure(
            "incompatible_method",
            "runtime.device is 'cuda', but PyTorch sees no CUDA device here.",
            "Use device 'auto' or 'cpu', or install a CUDA build of PyTorch and the driver.",
        )
    device = torch.device("cuda" if cuda and runtime.device != "cpu" else "cpu")
    if known_dtype is not None:
        return Compute(device, dtype_of(known_dtype), f"{known_dtype}, as in the attempt before")
    if runtime.dtype != "auto":
        return Compute(device, dtype_of(runtime.dtype), f"{runtime.dtype}, as asked")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return Compute(device, torch.bfloat16, "bfloat16: the GPU has it in hardware")
        return Compute(device, torch.float32, "float32: the GPU has no bfloat16")
    if not alone:
        return Compute(device, torch.float32, "float32, as on each of the CPUs that share the work")
    gain = bfloat16_gain()
    words = f"a bfloat16 matrix product takes {1 / gain:.2f} times as long as float32 on this CPU"
    if gain >= _WORTHWHILE:
        return Compute(device, torch.bfloat16, f"bfloat16: {words}")
    return Compute(device, torch.float32, f"float32: {words}")


_known_gain: float | None = None


def know_gain(gain: float) -> None:
    """As measured elsewhere."""
    global _known_gain
    _known_gain = gain


def bfloat16_gain() -> float:
    """Measured once. That the machine is busy meanwhile says nothing of its products."""
    if _known_gain is None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            know_gain(gain_of(lambda dtype, patience: gemm_seconds(dtype, patience=patience, size=_SIZE)))
        finally:
            torch.set_num_threads(threads)
    return cast("float", _known_gain)


def gain_of(seconds: Callable[[torch.dtype, float], float]) -> float:
    """`seconds`: of the fastest product in about so many seconds of them. Types take turns: whatever else the
    machine does for a moment then slows down both. The first product of a type, which prepares it, does not
    count."""
    fastest = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for dtype in fastest:
        seconds(dtype, 0)
    for turn in range(_TURNS):
        for dtype, before in fastest.items():
            fastest[dtype] = min(before, seconds(dtype, _TURN_SECONDS))
        # Emulated: each product takes a while, and there is nothing to find out.
        if turn + 1 >= _TURNS_AT_LEAST and fastest[torch.bfloat16] > _HOPELESS * fastest[torch.float32]:
            break
    return fastest[torch.float32] / fastest[torch.bfloat16]


def seed_everything(seed: int) -> None:
    cast("Any", torch).manual_seed(seed)


def dtype_of(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def gemm_seconds(dtype: torch.dtype, *, patience: float = 0.1, size: int = 512) -> float:
    """Fastest product size x size x size of about `patience` seconds of them. One at least: an emulated type
    takes longer than that for each."""
    left = torch.ones(size, size, dtype=dtype)
    right = torch.ones(size, size, dtype=dtype)
    fastest = float("inf")
    end = time.perf_counter() + patience
    while fastest == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
