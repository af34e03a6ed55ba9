"""Which number type the products run in, from times that are made up here: the rule, not the machine."""

from collections.abc import Iterable

import pytest
import torch

from fettle_trainer import device
from fettle_trainer.device import gain_of


def told(float32: Iterable[float], bfloat16: Iterable[float]) -> tuple[float, int]:
    """The gain, and how many times bfloat16 was measured: the first time of each is that of its first
    product."""
    times = {torch.float32: iter(float32), torch.bfloat16: iter(bfloat16)}
    asked: list[torch.dtype] = []

    def seconds(dtype: torch.dtype, _: float) -> float:
        asked.append(dtype)
        return next(times[dtype])

    return gain_of(seconds), asked.count(torch.bfloat16)


def test_a_busy_moment_does_not_choose_the_number_type() -> None:
    """It made runs fp32 on machines with bfloat16: half as fast."""
    assert told([2.0] * 9, [1.0, 3.5, 3.5, *[1.0] * 6]) == (2.0, 9)
    assert told([9.0, 9.0, 9.0, *[2.0] * 6], [1.0] * 9) == (2.0, 9)
    assert told([2.0] * 9, [*[1.0] * 8, 3.5]) == (2.0, 9)


def test_the_first_product_of_a_type_prepares_it_and_does_not_count() -> None:
    assert told([2.0] * 9, [500.0, *[1.0] * 8]) == (2.0, 9)


def test_an_emulated_type_is_not_waited_for() -> None:
    gain, times = told([2.0] * 9, [120.0] * 9)
    assert (gain, times) == (pytest.approx(1 / 60), 4)
    assert told([2.0] * 9, [120.0, 120.0, 120.0, *[1.0] * 6]) == (2.0, 9)


def test_it_is_measured_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two wait for each other, and on a busy machine for what runs beside them."""
    before = torch.get_num_threads()
    seen: list[int] = []

    def seconds(dtype: torch.dtype, **_: float) -> float:
        seen.append(torch.get_num_threads())
        return {torch.float32: 3.0, torch.bfloat16: 1.0}[dtype]

    monkeypatch.setattr(device, "_known_gain", None)
    monkeypatch.setattr(device, "gemm_seconds", seconds)
    torch.set_num_threads(2)
    try:
        assert device.bfloat16_gain() == 3.0
        assert (set(seen), torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)
