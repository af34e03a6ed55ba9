"""Adapters in PEFT's format: PEFT loads them and gives our logits; merged gives the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import (
    LABELS,
    chat_rows,
    class_rows,
    make_decoder,
    make_encoder,
    make_seq2seq,
    make_spec,
    pair_rows,
    write_rows,
)
from training import of_type, train

from fettle_trainer import artefact
from fettle_trainer.failure import TrainFailure
from fettle_trainer.tensor_files import read_tensors, write_tensors

KINDS = {
    "llama": ("chat", "decoder", "AutoModelForCausalLM"),
    "gpt2": ("chat", "decoder", "AutoModelForCausalLM"),
    "bert": ("classification", "encoder", "AutoModelForSequenceClassification"),
    "roberta": ("classification", "encoder", "AutoModelForSequenceClassification"),
    "distilbert": ("classification", "encoder", "AutoModelForSequenceClassification"),
    "qwen2": ("classification", "decoder", "AutoModelForSequenceClassification"),
    "t5": ("seq2seq", "seq2seq", "AutoModelForSeq2SeqLM"),
    "marian": ("seq2seq", "seq2seq", "AutoModelForSeq2SeqLM"),
}


def trained(folder: Path, kind: str, **changes: Any) -> tuple[dict[str, Any], Path]:
    """A finished LoRA run of one epoch and its artefact."""
    task, family, _ = KINDS[kind]
    model = folder / "model"
    {"decoder": make_decoder, "encoder": make_encoder, "seq2seq": make_seq2seq}[family](model, kind)
    rows = {"chat": chat_rows, "classification": class_rows, "seq2seq": pair_rows}[task](24)
    labels = {"data__labels": LABELS} if task == "classification" else {}
    spec = make_spec(
        model, write_rows(folder / "rows.jsonl", rows), folder / "out", task=task, base_model__family=family,
        hyperparameters__num_train_epochs=1, **labels, **changes,
    )  # fmt: skip
    code, events = train(spec)
    assert code == 0, of_type(events, "failed")
    return spec, folder / "out" / "artefact"


def bare(kind: str, folder: Path) -> Any:
    loader = getattr(transformers, KINDS[kind][2])
    labels = {"num_labels": len(LABELS)} if KINDS[kind][0] == "classification" else {}
    return loader.from_pretrained(folder, **labels).eval()


def with_peft(model: Any, folder: Path) -> Any:
    peft = pytest.importorskip("peft")
    if model.config.is_encoder_decoder:
        # PEFT 0.21's class for these asks transformers 5 for a method that is gone; its base class does not.
        wrapped = peft.PeftModel(model, peft.PeftConfig.from_pretrained(folder))
        loaded = wrapped.load_adapter(folder, "default")
        assert not loaded.unexpected_keys
        return wrapped.eval()
    return peft.PeftModel.from_pretrained(model, folder).eval()


def inputs_for(kind: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 60, (1, 12), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, **({"decoder_input_ids": ids[:, :5]} if KINDS[kind][1] == "seq2seq" else {})}


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_the_adapter_and_gives_our_logits(tmp_path: Path, kind: str) -> None:
    spec, folder = trained(tmp_path, kind)
    model = bare(kind, Path(spec["base_model"]["path"]))
    inputs = inputs_for(kind)
    with torch.no_grad():
        before = model(**inputs).logits
        theirs = with_peft(model, folder)(**inputs).logits
        ours = (
            artefact.load_artefact(folder, Path(spec["base_model"]["path"]), torch.float32)
            .model(**inputs)
            .logits
        )
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert (theirs - before).abs().max() > 1e-3
    config = json.loads((folder / "adapter_config.json").read_text())
    assert all("." not in name for name in config["target_modules"]), config["target_modules"]
    assert not list(folder.glob("*.bin"))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_merged_model_answers_as_base_and_adapter(tmp_path: Path, kind: str) -> None:
    spec, folder = trained(tmp_path, kind)
    base, out = Path(spec["base_model"]["path"]), tmp_path / "merged"
    difference = artefact.merge(base, folder, out)
    assert difference < 1e-4
    inputs = inputs_for(kind)
    with torch.no_grad():
        apart = artefact.load_artefact(folder, base, torch.float32).model(**inputs).logits
        together = bare(kind, out)(**inputs).logits
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    merged, original = read_tensors(out / "model.safetensors"), read_tensors(base / "model.safetensors")
    named = {name: next(one for one in merged if one.endswith(name)) for name in original}
    assert any(not torch.equal(merged[new], original[old]) for old, new in named.items())
    assert (out / "tokenizer.json").is_file()
    with pytest.raises(TrainFailure, match="exists and is not empty"):
        artefact.merge(base, folder, out)


def test_named_target_modules_alone_are_changed(tmp_path: Path) -> None:
    _, folder = trained(tmp_path, "llama", hyperparameters__target_modules=["q_proj", "v_proj"])
    tensors = read_tensors(folder / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in tensors} == {"q_proj", "v_proj"}
    assert len(tensors) == 2 * 2 * 2


def test_unknown_target_module_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    model = make_decoder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(4))
    spec = make_spec(model, rows, tmp_path / "out", hyperparameters__target_modules=["query"])
    code, events = train(spec)
    assert code == 1
    assert events[-1]["code"] == "incompatible_method"
    assert "'query', which this model does not have" in events[-1]["message"]
    assert "q_proj" in events[-1]["hint"]


def test_training_goes_on_from_an_adapter(tmp_path: Path) -> None:
    spec, folder = trained(tmp_path, "llama")
    losses = [event["train_loss"] for event in of_type(train(spec)[1], "step")]
    again = {**spec, "output_dir": str(tmp_path / "again")}
    again["base_model"] = {**spec["base_model"], "adapter_path": str(folder)}
    code, events = train(again)
    assert code == 0, of_type(events, "failed")
    assert of_type(events, "step")[0]["train_loss"] < losses[0] - 0.3


def test_going_on_keeps_the_shape_and_takes_the_dropout_of_the_new_run(tmp_path: Path) -> None:
    spec, folder = trained(tmp_path, "llama", hyperparameters__lora_r=4, hyperparameters__lora_alpha=8)
    again = {**spec, "output_dir": str(tmp_path / "again")}
    again["base_model"] = {**spec["base_model"], "adapter_path": str(folder)}
    again["hyperparameters"] = {**spec["hyperparameters"], "lora_r": 16, "lora_dropout": 0.25}
    code, events = train(again)
    assert code == 0, of_type(events, "failed")
    config = json.loads((tmp_path / "again" / "artefact" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.25)


def test_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    spec, folder = trained(tmp_path, "llama")
    tensors = read_tensors(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    write_tensors(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(TrainFailure, match=r"does not fit this model at model\.layers"):
        artefact.load_artefact(folder, Path(spec["base_model"]["path"]), torch.float32)
