"""QLoRA: a base in 4 bits under an adapter. What needs bitsandbytes is run by `npm run test:proofs`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapters import bare, inputs_for, trained, with_peft
from test_step import prepared
from tiny import chat_rows, make_decoder, make_spec, read_events, write_rows
from torch import nn
from training import of_type, train, write_spec

from fettle_trainer import artefact, four_bits
from fettle_trainer.adapters import LoraSettings, add_lora, keep_in_four_bits, lora_layers
from fettle_trainer.checkpoint_model import Start, export_checkpoint
from fettle_trainer.device import Compute
from fettle_trainer.failure import TrainFailure
from fettle_trainer.four_bits import Linear4, four_bit_layers
from fettle_trainer.kernels.projection import Projection
from fettle_trainer.models import load_for_training
from fettle_trainer.probe import four_bits as probed
from fettle_trainer.spec import parse_spec, read_spec
from fettle_trainer.step import Stepper
from fettle_trainer.tensor_files import read_tensors, write_tensors

CPU = torch.device("cpu")


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bits, "_PACKAGE", "no_such_package")


@pytest.mark.usefixtures("without_package")
def test_a_run_without_the_package_says_what_installs_it(tmp_path: Path) -> None:
    model = make_decoder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(8))
    code, events = train(make_spec(model, rows, tmp_path / "out", method="qlora"))
    (failed,) = of_type(events, "failed")
    assert code == 1
    assert failed["code"] == "incompatible_method"
    assert "no_such_package is not installed" in failed["message"]
    assert "scripts/setup.mjs --qlora" in failed["hint"]
    assert "'lora'" in failed["hint"]


def test_the_probe_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert probed() == {"four_bits": "PyTorch sees no GPU here"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(four_bits, "_PACKAGE", "no_such_package")
    assert "is not installed" in probed()["four_bits"]
    monkeypatch.setattr(four_bits, "_PACKAGE", "json")
    assert probed() == {"four_bits": None}


def test_ranks_that_split_the_base_are_refused(tmp_path: Path) -> None:
    model = make_decoder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(8))
    spec = parse_spec(make_spec(model, rows, tmp_path / "out", method="qlora"))
    with pytest.raises(TrainFailure, match="cannot be split over ranks") as caught:
        load_for_training(spec, Compute(CPU, torch.float32, "a test"), sharded=True)
    assert caught.value.code == "incompatible_method"


# ---------------------------------------------------------------- with bitsandbytes


def linear(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(3)
    layer = nn.Linear(64, 96, bias=bias, dtype=dtype)
    layer.requires_grad_(False)
    return layer


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_answers_as_bitsandbytes_own_does_with_half_a_byte_a_weight(dtype: torch.dtype) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit  # type: ignore[import-not-found]

    layer = linear(dtype)
    small = Linear4(layer.weight, layer.bias)
    theirs = Linear4bit(64, 96, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
    theirs.weight = Params4bit(
        layer.weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    theirs.bias = layer.bias
    theirs.to("cpu")
    x = torch.randn(5, 64, dtype=dtype, requires_grad=True)
    y = torch.randn(5, 64, dtype=dtype)
    y.copy_(x.detach()).requires_grad_()
    found, expected = small(x), theirs(y)
    assert torch.equal(found, expected)
    assert not torch.equal(found, layer(x))
    found.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x.grad, y.grad)
    # 4 bits, 8 for 64 weights, 32 for 16,384; the mean of a layer's scales.
    assert small.num_bytes == 96 * 64 / 2 + 96 + 4 + 4
    assert (small.weight - layer.weight).abs().max() < 0.2 * layer.weight.abs().max()


@pytest.mark.slow
def test_fused_products_of_4_bits_are_those_of_the_weights_they_stand_for() -> None:
    """Query, key and value as one product, an adapter over the first."""
    settings = LoraSettings(r=2, alpha=4, dropout=0.0, targets=("a",), modules_to_save=())

    class Three(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.a, self.b, self.c = layers

    small = Three(linear(), linear(bias=False), linear())
    add_lora(small.requires_grad_(True), settings, 1)
    keep_in_four_bits(small, (), CPU)
    whole = Three(linear(), linear(bias=False), linear())
    add_lora(whole.requires_grad_(True), settings, 1)
    for name in "abc":
        own, other = getattr(whole, name), getattr(small, name)
        (own.base if name == "a" else own).weight.data = (other.base if name == "a" else other).weight
    for model in (small, whole):
        nn.init.normal_(model.a.lora_B, std=0.1, generator=torch.Generator().manual_seed(5))
    results = []
    for model in (small, whole):
        x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        projection = Projection([model.a, model.b, model.c], torch.float32)
        projection(x).square().sum().backward()
        results.append((projection(x), x.grad, model.a.lora_A.grad, model.a.lora_B.grad))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_it_leaves_an_ordinary_adapter(tmp_path: Path, kind: str) -> None:
    spec, folder = trained(tmp_path, kind, method="qlora")
    base = Path(spec["base_model"]["path"])
    events = read_events(tmp_path / "out")
    assert of_type(events, "verified")
    (told,) = [event["data"] for event in of_type(events, "log") if "four_bit_bytes" in event.get("data", {})]
    # Of fp32 here; of bf16, as which a GPU would hold it, a quarter.
    assert told["four_bit_bytes"] < 0.14 * told["bytes_before"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert json.loads((folder / "fettle.json").read_text())["method"] == "qlora"
    # LoRA's names and sizes; PEFT loads it over the base as it is, and there it answers as we serve it.
    (tmp_path / "lora").mkdir()
    _, other = trained(tmp_path / "lora", kind, method="lora")
    own, lora = (read_tensors(one / "adapter_model.safetensors") for one in (folder, other))
    assert {name: one.shape for name, one in own.items()} == {name: one.shape for name, one in lora.items()}
    assert (
        config["target_modules"] == json.loads((other / "adapter_config.json").read_text())["target_modules"]
    )
    inputs = inputs_for(kind)
    with torch.no_grad():
        theirs = with_peft(bare(kind, base), folder)(**inputs).logits
        ours = artefact.load_artefact(folder, base, torch.float32).model(**inputs).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    artefact.merge(base, folder, tmp_path / "merged")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_falls_as_with_lora(tmp_path: Path, dtype: str) -> None:
    model = make_decoder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(24))
    ends: dict[str, float] = {}
    for method in ("lora", "qlora"):
        spec = make_spec(model, rows, tmp_path / method, method=method, runtime__dtype=dtype)
        spec["hyperparameters"]["num_train_epochs"] = 6
        code, events = train(spec)
        assert code == 0, of_type(events, "failed")
        losses = [event["train_loss"] for event in of_type(events, "step")]
        assert losses[-1] < 0.85 * losses[0], (method, losses)
        ends[method] = losses[-1]
    assert ends["qlora"] == pytest.approx(ends["lora"], rel=0.05)


@pytest.mark.slow
def test_the_command_itself_trains_and_proves_it_in_another_process(tmp_path: Path) -> None:
    """With what the command hides from transformers, and the stand-in for a compiler."""
    model = make_decoder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(8))
    path = write_spec(make_spec(model, rows, tmp_path / "out", method="qlora"))
    source = str(Path(four_bits.__file__).parents[1])
    known = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "fettle_trainer", "train", str(path)],
        env={**os.environ, "PYTHONPATH": known},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_events(tmp_path / "out")[-1]["type"] == "verified"


@pytest.mark.slow
def test_what_was_learnt_holds_over_the_base_as_it_is(tmp_path: Path) -> None:
    _, rows, before = prepared(tmp_path, "llama", "lora")
    base, path = tmp_path / "llama", tmp_path / "chat.jsonl"
    spec = make_spec(base, path, tmp_path / "tuned", method="qlora", hyperparameters__num_train_epochs=8)
    code, events = train(spec)
    assert code == 0, of_type(events, "failed")
    losses = {"untrained": before.evaluate(rows, 4, lambda _: None).loss}
    for name in ("as it is", "in 4 bits"):
        loaded = artefact.load_artefact(tmp_path / "tuned" / "artefact", base, torch.float32)
        if name == "in 4 bits":
            keep_in_four_bits(loaded.model, (), CPU)
        losses[name] = Stepper(loaded, "chat").evaluate(rows, 4, lambda _: None).loss
    print(f"loss over the base: {losses}")
    learnt = losses["untrained"] - losses["in 4 bits"]
    assert learnt > 1
    assert abs(losses["as it is"] - losses["in 4 bits"]) < 0.1 * learnt


@pytest.mark.slow
def test_an_artefact_that_is_not_the_trained_adapter_is_found_out_over_4_bits_too(tmp_path: Path) -> None:
    spec, folder = trained(tmp_path, "llama", method="qlora")
    base, probe = Path(spec["base_model"]["path"]), tmp_path / "out" / "cache" / "probe.safetensors"
    artefact.verify(folder, base, probe)
    tensors = read_tensors(folder / "adapter_model.safetensors")
    write_tensors(folder / "adapter_model.safetensors", {name: one * 1.5 for name, one in tensors.items()})
    with pytest.raises(TrainFailure, match="answers differ"):
        artefact.verify(folder, base, probe)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_all_but_head_embedding_and_adapters_are_in_4_bits_and_stay_as_they_are(
    tmp_path: Path, targets: Any
) -> None:
    model = make_decoder(tmp_path / "model", "qwen3")
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(8))
    spec = make_spec(model, rows, tmp_path / "out", method="qlora", hyperparameters__target_modules=targets)
    loaded = load_for_training(parse_spec(spec), Compute(CPU, torch.bfloat16, "a test"))
    assert loaded.kernels is not None, loaded.layers
    linears = 2 * 7
    assert len(list(four_bit_layers(loaded.model))) == linears
    assert len(list(lora_layers(loaded.model))) == (linears if targets == "all-linear" else 2)
    assert isinstance(loaded.model.get_output_embeddings(), nn.Linear)
    for layer in four_bit_layers(loaded.model):
        assert layer.packed.dtype == torch.uint8
        assert layer.packed.numel() == layer.shape.numel() / 2
        assert not list(layer.parameters())
    left = {name for name, value in loaded.model.named_parameters() if not value.requires_grad}
    assert all("embed" in name or "norm" in name or name == "lm_head.weight" for name in left), left


@pytest.mark.slow
def test_the_base_takes_a_quarter_of_what_it_took_in_bf16(tmp_path: Path) -> None:
    settings = LoraSettings(r=4, alpha=8, dropout=0.0, targets=None, modules_to_save=())
    torch.manual_seed(0)
    model: Any = nn.Sequential(*(nn.Linear(512, 512, bias=False, dtype=torch.bfloat16) for _ in range(4)))
    before = sum(value.numel() * 2 for value in model.parameters())
    add_lora(model, settings, 1)
    keep_in_four_bits(model, (), CPU)
    now = sum(layer.num_bytes for layer in four_bit_layers(model))
    assert 0.25 < now / before < 0.26
    frozen = [value for value in model.parameters() if not value.requires_grad]
    assert frozen == []


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    steps = {"runtime__checkpoint_steps": 1, "runtime__keep_checkpoints": 100}
    spec, folder = trained(tmp_path, "llama", method="qlora", **steps)
    again = {**spec, "output_dir": str(tmp_path / "again")}
    shutil.copytree(tmp_path / "out" / "checkpoints" / "1", tmp_path / "again" / "checkpoints" / "1")
    code, events = train(again)
    assert code == 0, of_type(events, "failed")
    assert events[0]["resumed_from_step"] == 1
    assert artefact.folder_sha256(tmp_path / "again" / "artefact") == artefact.folder_sha256(folder)


@pytest.mark.slow
def test_a_checkpoint_becomes_a_model_and_an_adapter_of_lora_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"runtime__checkpoint_steps": 1, "runtime__keep_checkpoints": 100}
    spec, folder = trained(tmp_path, "llama", method="qlora", **steps)
    base = Path(spec["base_model"]["path"])
    further = make_spec(
        base,
        Path(spec["data"]["train_path"]),
        tmp_path / "on",
        method="qlora",
        base_model__adapter_path=str(folder),
    )
    assert train(further)[0] == 0
    # Where bitsandbytes is not: nothing is made small for an export.
    monkeypatch.setattr(four_bits, "_PACKAGE", "no_such_package")
    (tmp_path / "out" / "spec.json").write_text(json.dumps(spec))
    export_checkpoint(
        read_spec(tmp_path / "out" / "spec.json"),
        tmp_path / "out",
        1,
        start=Start(base, None),
        out=tmp_path / "one",
    )
    assert json.loads((tmp_path / "one" / "fettle.json").read_text())["method"] == "qlora"
    found = read_tensors(tmp_path / "one" / "adapter_model.safetensors")
    assert found.keys() == read_tensors(folder / "adapter_model.safetensors").keys()
