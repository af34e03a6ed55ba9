"""Layers that others wrote: the model's own with Liger's kernels, or compiled. What takes a compiler or
Triton is run by `npm run test:proofs`."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from families import make_family
from test_step import gradients, prepared
from tiny import chat_rows, make_spec, write_rows
from training import of_type, train

from fettle_trainer import packing
from fettle_trainer.kernels import borrowed
from fettle_trainer.models import load_model

needs_liger = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="Liger is not installed"),
]
needs_compiler = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler"),
]
WAYS = [pytest.param("liger", marks=needs_liger), pytest.param("compiled", marks=needs_compiler)]
MICRO = [[0, 1, 2], [3, 4], [5]]


class Number(float):
    """Kernels change the type of their numbers, which a compiler knows as its own and Triton's interpreter as
    Python's."""

    def to(self, _: object) -> "Number":
        return self


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("liger_kernel") is None:
        return
    # The interpreter has no library of a GPU's own functions.
    norms, gates = (importlib.import_module(f"liger_kernel.ops.{name}") for name in ("rms_norm", "geglu"))
    language, interpreter = map(importlib.import_module, ("triton.language", "triton.runtime.interpreter"))
    monkeypatch.setattr(norms, "rsqrt", lambda x: language.rsqrt(x))
    monkeypatch.setattr(gates, "tanh", lambda x: 2 * language.sigmoid(2 * x) - 1)
    converted = interpreter._implicit_cvt
    monkeypatch.setattr(
        interpreter, "_implicit_cvt", lambda one: Number(one) if type(one) is float else converted(one)
    )


def told(folder: Path, layers: str, kind: str = "llama", **changes: Any) -> str:
    return prepared(folder, kind, runtime__layers=layers, **changes)[0].layers


def test_the_models_own_layers_can_be_asked_for(tmp_path: Path) -> None:
    loaded, _, _ = prepared(tmp_path, "llama", runtime__layers="plain")
    assert loaded.kernels is None
    assert loaded.packed
    assert loaded.layers == "its own layers, as runtime.layers is 'plain'"


def test_liger_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrowed, "_PACKAGE", "no_such_package")
    assert "Liger's kernels are not used, as no_such_package is not installed" in told(tmp_path, "liger")
    assert "scripts/setup.mjs --liger" in told(tmp_path, "liger")
    # Nobody asked.
    assert "Liger" not in told(tmp_path, "auto", "gpt2")


def test_liger_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrowed, "_PACKAGE", "json")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "Liger's kernels are not used, as they need a GPU" in told(tmp_path, "liger")


def test_liger_that_cannot_be_loaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrowed, "_PACKAGE", "json")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    said = told(tmp_path, "liger")
    assert "Liger's kernels are not used, as json cannot be loaded (ModuleNotFoundError: " in said


class Halved(torch.autograd.Function):
    """Right on the way forth, wrong on the way back."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] / 2


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_learns_otherwise_is_left_out(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any) -> Any:
        layer = model.base_model.layers[1].mlp
        own = layer.forward
        return lambda: setattr(layer, "forward", lambda x: cast("Any", Halved).apply(own(x)))

    monkeypatch.setattr(borrowed, "_compiled", wrong)
    loaded, _, _ = prepared(tmp_path, "llama", method, runtime__layers="compiled")
    assert "compiled, are not used, as their gradients of " in loaded.layers


@pytest.mark.parametrize("layers", WAYS)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradients_are_those_of_the_models_own_layers(
    tmp_path: Path, layers: str, kind: str, method: str
) -> None:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for asked in ("plain", layers):
        loaded, rows, stepper = prepared(tmp_path, kind, method, runtime__layers=asked)
        if asked != "plain":
            assert loaded.layers.endswith("answer as without")
        found[asked] = gradients(stepper, rows, MICRO)
    assert found[layers].keys() == found["plain"].keys()
    for name, expected in found["plain"].items():
        torch.testing.assert_close(found[layers][name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", WAYS)
def test_what_answers_otherwise_is_left_out(
    tmp_path: Path, layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, rows, stepper = prepared(tmp_path, "llama", runtime__layers="plain")
    expected = gradients(stepper, rows, MICRO)
    before = [set(vars(module)) for module in plain.model.modules()]
    monkeypatch.setattr(borrowed, "how_unlike", other_than(packing.how_unlike))
    loaded, rows, stepper = prepared(tmp_path, "llama", runtime__layers=layers)
    assert "are not used, as their answers differ by 9" in loaded.layers
    assert [set(vars(module)) for module in loaded.model.modules()] == before
    for name, gradient in gradients(stepper, rows, MICRO).items():
        assert torch.equal(gradient, expected[name])


def other_than(ask: Any) -> Any:
    def asked(*given: Any, **named: Any) -> str:
        assert ask(*given, **named) == ""
        return "answers differ by 9 %"

    return asked


@pytest.mark.parametrize("layers", WAYS)
@pytest.mark.parametrize("name", ["gemma3", "phi3"])
def test_a_family_without_fused_layers_from_spec_to_artefact(
    tmp_path: Path, layers: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_family(tmp_path / "model", name)
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(16))
    losses: dict[str, list[float]] = {}
    for asked in ("plain", layers):
        spec = make_spec(model, rows, tmp_path / asked, runtime__layers=asked)
        code, events = train(spec)
        assert (code, events[-1]["type"]) == (0, "verified"), of_type(events, "failed")
        losses[asked] = [event["train_loss"] for event in of_type(events, "step")]
    said = " ".join(event["message"] for event in of_type(events, "log"))
    assert "answer as without" in said
    assert losses[layers] == pytest.approx(losses["plain"], rel=1e-3)
    # What is made later in this process is of transformers' own classes.
    again, _ = load_model(model, "chat", labels=None, dtype=torch.float32)
    assert all(
        type(module).__module__.split(".")[0] in ("torch", "transformers") for module in again.modules()
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_layers_of_one_kind_share_what_is_compiled(tmp_path: Path) -> None:
    """Beyond a number of kinds PyTorch would compile no more, and say nothing."""
    from torch._dynamo.utils import counters

    loaded, rows, stepper = prepared(tmp_path, "gpt2", runtime__layers="compiled")
    assert loaded.layers.endswith("compiled, answer as without")
    counters.clear()
    gradients(stepper, rows, MICRO)
    first = counters["stats"]["unique_graphs"]
    gradients(stepper, rows, [[6], [7, 8], [9, 10, 11, 12]])
    assert 0 < first <= 8
    assert counters["stats"]["unique_graphs"] == first
