"""Each method: what it trains moves, the rest stays, and the saved model answers as the trained one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapters import bare, inputs_for, trained, with_peft
from tiny import chat_rows, make_decoder, make_spec, write_rows
from torch import Tensor, nn
from training import events_of, of_type, train

from fettle_trainer import artefact
from fettle_trainer.adapter_kinds import tensors_of
from fettle_trainer.adapters import LoraLinear, LoraSettings, add_lora, merge_lora
from fettle_trainer.checkpoint import CheckpointFolder
from fettle_trainer.device import Compute
from fettle_trainer.failure import TrainFailure
from fettle_trainer.models import load_for_training
from fettle_trainer.packing import segments
from fettle_trainer.spec import parse_spec
from fettle_trainer.tensor_files import read_tensors

METHODS = ["lora", "rslora", "dora", "ia3", "freeze", "prompt", "prefix"]
VIRTUAL = ["prompt", "prefix"]


def started(spec: dict[str, Any]) -> dict[str, Tensor]:
    """What a run trains, as it was before the first step; every tensor of the model beside it."""
    loaded = load_for_training(parse_spec(spec), Compute(torch.device("cpu"), torch.float32, "a test"))
    return {name: value.detach().clone() for name, value in loaded.trainable().items()}


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in ("llama", "bert", "t5") for method in METHODS if method not in VIRTUAL]
    + [(kind, method) for kind in ("llama", "gpt2") for method in VIRTUAL],
)
def test_all_that_is_trained_moves_within_two_steps(tmp_path: Path, kind: str, method: str) -> None:
    steps = {"runtime__checkpoint_steps": 2, "runtime__keep_checkpoints": 100}
    spec, _ = trained(tmp_path, kind, method=method, hyperparameters__weight_decay=0.0, **steps)
    before = started(spec)
    after = CheckpointFolder(tmp_path / "out" / "checkpoints", 100).load(2).weights
    assert before.keys() == after.keys()
    stuck = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert stuck == []


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path: Path, method: str) -> None:
    steps = {"runtime__checkpoint_steps": 1, "runtime__keep_checkpoints": 100}
    spec, folder = trained(tmp_path, "llama", method=method, **steps)
    again = {**spec, "output_dir": str(tmp_path / "again")}
    shutil.copytree(tmp_path / "out" / "checkpoints" / "1", tmp_path / "again" / "checkpoints" / "1")
    code, events = train(again)
    assert code == 0, of_type(events, "failed")
    assert events[0]["resumed_from_step"] == 1
    assert artefact.folder_sha256(tmp_path / "again" / "artefact") == artefact.folder_sha256(folder)


LAST_LAYER = {
    "llama": ("model.layers.1.", "model.norm."),
    "gpt2": ("transformer.h.1.", "transformer.ln_f."),
    "bert": ("bert.encoder.layer.1.", "bert.pooler.", "classifier."),
    "distilbert": ("distilbert.transformer.layer.1.", "pre_classifier.", "classifier."),
    "qwen2": ("model.layers.1.", "model.norm.", "score."),
    "t5": ("decoder.block.1.", "decoder.final_layer_norm."),
    "marian": ("model.decoder.layers.1.",),
}


@pytest.mark.parametrize("kind", LAST_LAYER)
def test_freeze_trains_the_last_layers_alone(tmp_path: Path, kind: str) -> None:
    spec, folder = trained(tmp_path, kind, method="freeze")
    names = started(spec).keys()
    assert all(name.startswith(LAST_LAYER[kind]) for name in names), names
    assert all(any(name.startswith(part) for name in names) for part in LAST_LAYER[kind])
    before = bare(kind, Path(spec["base_model"]["path"])).state_dict()
    after = bare(kind, folder).state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == set(names) | {n for n in changed if n.startswith(("classifier.", "pre_", "score."))}


def test_under_freeze_backward_ends_below_the_lowest_trained_layer(tmp_path: Path) -> None:
    spec, _ = trained(tmp_path, "llama", method="freeze")
    loaded = load_for_training(parse_spec(spec), Compute(torch.device("cpu"), torch.float32, "a test"))
    assert loaded.kernels is not None
    seen = list[bool]()
    for layer in loaded.model.model.layers:
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].requires_grad))
    with segments([12]):
        out = loaded.model(**inputs_for("llama"), use_cache=False).logits
    assert seen == [False, False]
    assert out.requires_grad


@pytest.mark.parametrize("count", [2, 5])
def test_freezing_nothing_is_refused(tmp_path: Path, count: int) -> None:
    model = make_decoder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(4))
    spec = make_spec(model, rows, tmp_path / "out", method="freeze", hyperparameters__trainable_layers=count)
    code, events = train(spec)
    assert code == 1
    assert events[-1]["code"] == "incompatible_method"
    assert "the model has 2 layers: none would stay frozen" in events[-1]["message"]


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_reads_virtual_tokens_as_we_do(tmp_path: Path, kind: str, method: str) -> None:
    spec, folder = trained(tmp_path, kind, method=method, hyperparameters__num_virtual_tokens=7)
    base, inputs = Path(spec["base_model"]["path"]), inputs_for(kind)
    ids = inputs["input_ids"]
    model = bare(kind, base)
    with torch.no_grad():
        before = model(**inputs).logits
        ours = artefact.load_artefact(folder, base, torch.float32).model(**inputs).logits
        theirs = with_peft(model, folder)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    # A prompt's own positions come out of PEFT as well.
    torch.testing.assert_close(theirs[:, -ids.shape[1] :], ours, rtol=1e-5, atol=1e-5)
    assert (ours - before).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_answer_padded_rows_as_rows_by_themselves(tmp_path: Path, method: str) -> None:
    spec, folder = trained(tmp_path, "llama", method=method)
    model = artefact.load_artefact(folder, Path(spec["base_model"]["path"]), torch.float32).model
    long, short = torch.randint(4, 60, (2, 9)), 6
    mask = torch.ones_like(long)
    mask[1, short:] = 0
    with torch.no_grad():
        both = model(input_ids=long, attention_mask=mask).logits
        alone = model(input_ids=long[1:, :short]).logits
    torch.testing.assert_close(both[1:, :short], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_take_their_positions_from_the_rows(tmp_path: Path, method: str) -> None:
    """GPT-2 has a table of positions: a row that fills it would read past its end."""
    spec, _ = trained(tmp_path, "gpt2", method=method, hyperparameters__max_length=4096)
    loaded = load_for_training(parse_spec(spec), Compute(torch.device("cpu"), torch.float32, "a test"))
    most = loaded.model.config.n_positions
    assert loaded.max_length == most - 5
    assert not loaded.packed
    with torch.no_grad():
        assert loaded.model(input_ids=torch.ones(1, most - 5, dtype=torch.long)).logits.shape[1] == most - 5


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_are_not_merged(tmp_path: Path, method: str) -> None:
    spec, folder = trained(tmp_path, "llama", method=method)
    with pytest.raises(TrainFailure, match="no change of a weight"):
        artefact.merge(Path(spec["base_model"]["path"]), folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_learn_in_bf16(tmp_path: Path, method: str) -> None:
    model = make_decoder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(16))
    spec = make_spec(
        model, rows, tmp_path / "out", method=method, runtime__dtype="bfloat16",
        hyperparameters__num_train_epochs=15, hyperparameters__learning_rate=0.1,
    )  # fmt: skip
    code, events = train(spec)
    assert code == 0, of_type(events, "failed")
    losses = [event["train_loss"] for event in of_type(events, "step")]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.05


@pytest.mark.parametrize("method", ["rslora", "dora", "ia3"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "roberta", "t5"])
def test_peft_gives_the_answers_of_the_method(tmp_path: Path, kind: str, method: str) -> None:
    spec, folder = trained(tmp_path, kind, method=method)
    config = json.loads((folder / "adapter_config.json").read_text())
    if method == "ia3":
        assert config["peft_type"] == "IA3"
    else:
        assert (config["use_rslora"], config["use_dora"]) == (method == "rslora", method == "dora")
    base, inputs = Path(spec["base_model"]["path"]), inputs_for(kind)
    model = bare(kind, base)
    with torch.no_grad():
        before = model(**inputs).logits
        theirs = with_peft(model, folder)(**inputs).logits
        ours = artefact.load_artefact(folder, base, torch.float32).model(**inputs).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert (theirs - before).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["rslora", "dora", "ia3"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_merged_answers_as_unmerged(tmp_path: Path, kind: str, method: str) -> None:
    spec, folder = trained(tmp_path, kind, method=method)
    base, out = Path(spec["base_model"]["path"]), tmp_path / "merged"
    assert artefact.merge(base, folder, out) < 1e-4
    inputs = inputs_for(kind)
    with torch.no_grad():
        apart = artefact.load_artefact(folder, base, torch.float32).model(**inputs).logits
        torch.testing.assert_close(bare(kind, out)(**inputs).logits, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("rank", [1, 6])
@pytest.mark.parametrize("transposed", [False, True])
def test_dora_has_pefts_answer_and_gradients(transposed: bool, rank: int, dropout: float) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Conv1D(7, 12) if transposed else nn.Linear(12, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    torch.manual_seed(rank)
    ours = Net()
    nn.init.normal_(ours.layer.bias)
    weights = {name: value.clone() for name, value in ours.state_dict().items()}
    settings = LoraSettings(rank, 5.0, dropout, ("layer",), (), dora=True)
    add_lora(ours, settings, seed=1)
    layer = ours.layer
    assert isinstance(layer, LoraLinear)
    assert layer.magnitude is not None
    with torch.no_grad():
        layer.lora_B.normal_(0, 0.3)
        layer.magnitude.mul_(torch.rand(7) + 0.5)
    plain = Net()
    plain.load_state_dict(weights)
    options = {"r": rank, "lora_alpha": 5.0, "lora_dropout": dropout, "target_modules": ["layer"]}
    theirs: Any = get_peft_model(plain, LoraConfig(**options, use_dora=True, fan_in_fan_out=transposed))
    with torch.no_grad():
        theirs.base_model.model.layer.lora_A.default.weight.copy_(layer.lora_A)
        theirs.base_model.model.layer.lora_B.default.weight.copy_(layer.lora_B)
        theirs.base_model.model.layer.lora_magnitude_vector.default.weight.copy_(layer.magnitude)
    x = torch.randn(2, 5, 12)
    answers = []
    for model in (ours, theirs):
        given = x.clone().requires_grad_(True)
        torch.manual_seed(9)
        y = model.train()(given)
        y.square().sum().backward()
        answers.append((y, given.grad))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)
    peft = theirs.base_model.model.layer
    for mine, other in [
        (layer.lora_A, peft.lora_A.default.weight),
        (layer.lora_B, peft.lora_B.default.weight),
        (layer.magnitude, peft.lora_magnitude_vector.default.weight),
    ]:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        apart = ours.eval()(x)
        merge_lora(ours)
        torch.testing.assert_close(ours(x), apart, rtol=1e-5, atol=1e-5)


def test_dora_begins_as_the_base_and_is_not_fused(tmp_path: Path) -> None:
    """The fused layers read A and B alone: under them the magnitudes would never be used."""
    spec, _ = trained(tmp_path, "llama", method="dora")
    model = bare("llama", Path(spec["base_model"]["path"]))
    inputs = inputs_for("llama")
    with torch.no_grad():
        before = model(**inputs).logits
        add_lora(model, LoraSettings(4, 8, 0.0, None, (), dora=True), seed=3)
        torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-5, atol=1e-5)
    told = [event["message"] for event in of_type(events_of(spec), "log")]
    assert any("the fused layers know no DoRA" in message for message in told)


@pytest.mark.parametrize(("method", "what"), [("ia3", "IA3"), ("prompt", "virtual tokens")])
def test_what_the_fused_layers_do_not_know_is_not_fused(tmp_path: Path, method: str, what: str) -> None:
    """Ones as scales answer as the base does, so that no comparison of answers would tell."""
    spec, _ = trained(tmp_path, "llama", method=method)
    told = [event["message"] for event in of_type(events_of(spec), "log")]
    assert any(f"the fused layers know no {what}" in message for message in told)


def test_ia3_has_pefts_places_by_the_models_names(tmp_path: Path) -> None:
    for kind, (ours, theirs) in {
        "llama": (("k_proj", "v_proj", "down_proj"), 3),
        "distilbert": (("k_lin", "v_lin", "lin2"), 3),
        "marian": (("k_proj", "v_proj", "fc2"), 8),
    }.items():
        folder = tmp_path / kind
        folder.mkdir()
        _, made = trained(folder, kind, method="ia3")
        config = json.loads((made / "adapter_config.json").read_text())
        leaves = {name.rsplit(".", 1)[-1] for name in config["target_modules"]}
        assert leaves == set(ours)
        assert len(config["target_modules"]) == 2 * theirs
        assert {name.rsplit(".", 1)[-1] for name in config["feedforward_modules"]} == {ours[-1]}


def test_dropout_in_an_adapter_is_not_fused_and_said(tmp_path: Path) -> None:
    spec, _ = trained(tmp_path, "llama", hyperparameters__lora_dropout=0.1)
    told = [event["message"] for event in of_type(events_of(spec), "log")]
    assert any("the fused layers know no dropout inside an adapter" in message for message in told)


def test_rslora_is_scaled_by_the_root_of_its_rank() -> None:
    assert LoraSettings(16, 8.0, 0.0, None, (), rslora=True).scale == 2.0
    assert LoraSettings(16, 8.0, 0.0, None, ()).scale == 0.5


@pytest.mark.parametrize("method", ["rslora", "dora", "ia3", "prompt", "prefix"])
def test_an_adapter_is_gone_on_from_by_its_own_method_alone(tmp_path: Path, method: str) -> None:
    spec, folder = trained(tmp_path, "llama", method=method)
    first = read_tensors(folder / "adapter_model.safetensors")
    again = {**spec, "output_dir": str(tmp_path / "again")}
    again["base_model"] = {**spec["base_model"], "adapter_path": str(folder)}
    assert {name: value.shape for name, value in started(again).items()}.keys() == started(spec).keys()
    code, events = train(again)
    assert code == 0, of_type(events, "failed")
    second = read_tensors(tmp_path / "again" / "artefact" / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert all(not torch.equal(first[name], second[name]) for name in first)
    code, events = train({**again, "method": "lora", "output_dir": str(tmp_path / "other")})
    assert code == 1
    assert events[-1]["code"] == "incompatible_method"
    assert f"made with method '{method}'" in events[-1]["message"]


@pytest.mark.parametrize("method", ["dora", "ia3"])
def test_the_base_stays_as_it_is(tmp_path: Path, method: str) -> None:
    spec, folder = trained(tmp_path, "llama", method=method)
    base = Path(spec["base_model"]["path"])
    loaded = artefact.load_artefact(folder, base, torch.float32)
    own = bare("llama", base).state_dict()
    kept = {name.replace(".base.", "."): value for name, value in loaded.model.state_dict().items()}
    assert all(torch.equal(kept[name], value) for name, value in own.items())
    assert loaded.adapter is not None
    saved = read_tensors(folder / "adapter_model.safetensors")
    assert tensors_of(loaded.model, loaded.adapter).keys() == saved.keys()


def test_an_output_head_named_as_target_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = make_decoder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(4))
    spec = make_spec(model, rows, tmp_path / "out", hyperparameters__target_modules=["q_proj", "lm_head"])
    code, events = train(spec)
    assert code == 1
    assert events[-1]["code"] == "incompatible_method"
    assert "'lm_head', the output head" in events[-1]["message"]
    assert "method 'full'" in events[-1]["hint"]
