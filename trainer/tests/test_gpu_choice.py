"""Which kernels a GPU's layers run on, tried without one."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from fettle_trainer import kernels
from fettle_trainer.kernels import decoder, encoder, passes

GPU = torch.device("cuda")
NAME = "fettle_trainer.kernels.passes_gpu"


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Found wherever this is; what it would compile is put in by each test.
    monkeypatch.setattr(passes, "_TRITON", "json")
    passes._gpu.cache_clear()
    yield
    passes._gpu.cache_clear()


def made(monkeypatch: pytest.MonkeyPatch, try_all: Any) -> ModuleType:
    module: Any = ModuleType(NAME)
    module.try_all = try_all
    monkeypatch.setitem(sys.modules, NAME, module)
    monkeypatch.setattr(kernels, "passes_gpu", module, raising=False)
    return module


def test_they_are_taken_in_16_bits_where_each_of_them_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.device] = []
    module = made(monkeypatch, tried.append)
    assert passes.on_gpu(torch.bfloat16, GPU) is module
    assert passes.between(torch.bfloat16, GPU) is module
    assert passes.on_gpu(torch.float32, GPU) is None
    assert passes.on_gpu(torch.bfloat16, torch.device("cpu")) is None
    assert tried == [GPU]
    assert kernels._between_products(decoder, torch.bfloat16, GPU) == ""


class OutOfResources(Exception):
    """As Triton's, which is no RuntimeError."""


def test_without_one_of_them_pytorch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: torch.device) -> None:
        raise OutOfResources("shared memory")

    made(monkeypatch, fails)
    assert passes.on_gpu(torch.bfloat16, GPU) is None
    assert "as no Triton works here" in kernels._between_products(decoder, torch.bfloat16, GPU)
    assert kernels._between_products(encoder, torch.bfloat16, GPU) == ""


def test_half_a_package_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, NAME, None)  # an import of it fails
    monkeypatch.delattr(kernels, "passes_gpu", raising=False)
    assert passes.on_gpu(torch.bfloat16, GPU) is None


def test_no_triton_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made(monkeypatch, lambda _: None)
    monkeypatch.setattr(passes, "_TRITON", "no_such_package")
    assert passes.on_gpu(torch.bfloat16, GPU) is None
