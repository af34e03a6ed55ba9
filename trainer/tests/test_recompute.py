"""Layers computed twice give the gradients of layers computed once, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_step import CPU, gradients, prepared
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fettle_trainer.device import Compute
from fettle_trainer.recompute import compute_again
from fettle_trainer.step import Stepper

BF16 = Compute(torch.device("cpu"), torch.bfloat16, "test")
MICRO = [[0, 1, 2, 3, 4], [5, 6, 7]]


def kept_bytes(work: Callable[[], Any]) -> int:
    """Of what autograd keeps at once, each place counted once; what a layer makes again is its own affair."""
    places: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        places[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(places.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("again")


# As on a GPU: our own layers (llama, qwen3), transformers' on rows laid end to end (gemma3) or padded.
@pytest.mark.parametrize(
    ("kind", "method", "compute"),
    [
        ("llama", "full", CPU),
        ("llama", "lora", CPU),
        ("qwen3", "lora", BF16),
        ("gemma3", "lora", CPU),
        ("gpt2", "full", CPU),
        ("bart", "full", CPU),
    ],
)
@pytest.mark.parametrize("offload", [False, True])
def test_gradients_are_the_same_bits(
    folder: Path, kind: str, method: str, compute: Compute, offload: bool
) -> None:
    loaded, rows, stepper = prepared(folder, kind, method, compute=compute)
    expected = gradients(stepper, rows, MICRO)
    loss = stepper.train_step(rows, MICRO, lambda _: None)
    compute_again(loaded.model, offload=offload)
    found = gradients(stepper, rows, MICRO)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert stepper.train_step(rows, MICRO, lambda _: None) == loss


def test_dropout_is_drawn_the_same_on_the_way_back(folder: Path) -> None:
    loaded, rows, stepper = prepared(folder, "gpt2", "lora", hyperparameters__lora_dropout=0.5)
    results: list[dict[str, Tensor]] = []
    for again in (False, True):
        if again:
            compute_again(loaded.model, offload=False)
        torch.manual_seed(11)
        results.append(gradients(stepper, rows, MICRO))
    assert [name for name in results[0] if not torch.equal(results[0][name], results[1][name])] == []
    torch.manual_seed(12)
    other = gradients(stepper, rows, MICRO)
    assert any(not torch.equal(other[name], results[0][name]) for name in other)


def test_less_is_kept_and_evaluations_are_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, rows, stepper = prepared(folder, "llama", "lora")
    before = kept_bytes(lambda: _loss(stepper, rows))
    compute_again(loaded.model, offload=False)
    assert kept_bytes(lambda: _loss(stepper, rows)) < 0.35 * before
    calls: list[int] = []
    layer = loaded.model.model.layers[0]
    monkeypatch.setattr(layer, "_gradient_checkpointing_func", lambda *_: calls.append(1))
    stepper.evaluate(rows, 4, lambda _: None)
    assert calls == []


def _loss(stepper: Stepper, rows: Any) -> None:
    stepper._refresh()
    stepper.loaded.set_training()
    stepper.loss(stepper.collate(rows, MICRO[0]).to(stepper.device), 0.0)
