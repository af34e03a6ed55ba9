"""ONNX: graphs for any batch and length, and their int8 with what it costs and gains."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_export_gguf import export
from torch import Tensor, nn

from fettle_trainer.artefact import load_artefact
from fettle_trainer.exports.compare import Measured, measure
from fettle_trainer.exports.onnx_model import OnnxModel, require_onnx, write_onnx
from fettle_trainer.exports.write import Request, export_model
from fettle_trainer.failure import TrainFailure
from fettle_trainer.models import load_model

FAMILIES = {"chat": "decoder", "preference": "decoder", "pretraining": "decoder", "seq2seq": "seq2seq"}
LABELLED = ("classification", "multilabel_classification", "token_classification")


def whole(folder: Path, task: Any) -> Path:
    """A model tuned whole, as a run leaves it: with its head."""
    family = FAMILIES.get(task, "encoder")
    makers = {"decoder": tiny.make_decoder, "encoder": tiny.make_encoder, "seq2seq": tiny.make_seq2seq}
    makers[family](folder)
    labels = tuple(tiny.LABELS) if task in LABELLED else None
    if family == "encoder":
        model, _ = load_model(folder, task, labels=labels, dtype=torch.float32)
        model.save_pretrained(folder)
    facts = {"task": task, "family": family, "labels": labels, "method": "full"}
    facts["max_length"] = 64 if family == "encoder" else 256
    facts["target"] = {"mean": 50.0, "std": 8.0} if task == "regression" else None
    (folder / "fettle.json").write_text(json.dumps({**facts, "stop_token_ids": [3], "base_model": "tiny"}))
    return folder


# `npm test` installs what graphs need; with --no-setup the environment may be one without it.
needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed here")


@needs_onnx
@pytest.mark.parametrize(
    "task",
    [
        "classification",
        *(
            pytest.param(one, marks=pytest.mark.exports)
            for one in ("chat", "question_answering", "embedding")
        ),
    ],
)
def test_a_graph_answers_as_the_model_for_any_batch_and_length(task: Any, tmp_path: Path) -> None:
    source = whole(tmp_path / "model", task)
    report = export(source, tmp_path / "out", form="onnx")
    assert report["after"]["max_abs_diff"] < 1e-4
    assert report["after"]["max_abs_change"] < 1e-4
    assert report["after"]["agreement"] == 1
    loaded = load_artefact(source, source, torch.float32)
    graph = OnnxModel(tmp_path / "out")
    for rows, width in ((1, 1), (3, 17), (5, 40)):
        ids = torch.randint(5, 60, (rows, width))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs["attention_mask"][0, (width + 1) // 2 :] = 0
        with torch.no_grad():
            output = loaded.model(**inputs)
        inputs["token_type_ids"] = torch.zeros_like(ids)
        found = graph.run({name: value.numpy() for name, value in inputs.items()})
        names = ["logits"]
        if task == "question_answering":
            names = ["start_logits", "end_logits"]
        if task == "embedding":
            names = ["last_hidden_state"]
        for name, one in zip(names, found, strict=True):
            # Behind the end of a row nobody looks.
            kept = ... if task == "classification" else inputs["attention_mask"].bool().numpy()
            assert one.shape == output[name].shape
            assert float(np.abs(one.numpy() - output[name].numpy())[kept].max()) < 1e-4
    assert ("1_Pooling" in {path.name for path in (tmp_path / "out").iterdir()}) == (task == "embedding")


@needs_onnx
@pytest.mark.exports
def test_an_encoder_decoder_is_two_graphs_that_write_as_the_model_does(tmp_path: Path) -> None:
    source = whole(tmp_path / "model", "seq2seq")
    report = export(source, tmp_path / "out", form="onnx")
    assert report["after"]["max_abs_diff"] < 1e-4
    assert report["after"]["agreement"] == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"encoder_model.onnx", "decoder_model.onnx", "tokenizer.json", "config.json"} <= names
    assert "decoder_model.onnx" in (tmp_path / "out" / "README.md").read_text()

    model = load_artefact(source, source, torch.float32).model
    graph = OnnxModel(tmp_path / "out")
    ids = torch.randint(5, 60, (2, 23))
    mask = torch.ones_like(ids)
    mask[0, 11:] = 0
    expected = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    written = torch.zeros(2, 1, dtype=torch.long)
    for _ in range(expected.shape[1] - 1):
        inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": written}
        [logits] = graph.run({name: value.numpy() for name, value in inputs.items()})
        written = torch.cat([written, logits[:, -1:].argmax(-1)], dim=1)
    for one, other in zip(written.tolist(), expected.tolist(), strict=True):
        end = other.index(3) + 1 if 3 in other else len(other)
        assert one[:end] == other[:end]


@needs_onnx
def test_int8_is_smaller_and_tells_what_it_costs_and_gains(tmp_path: Path) -> None:
    source = whole(tmp_path / "model", "classification")
    report = export(source, tmp_path / "out", form="onnx", quantize="int8")
    after = report["after"]
    assert after["max_abs_diff"] is None
    assert 0 < after["max_abs_change"] < 0.5
    assert 0 <= after["agreement"] <= 1
    assert after["loss"] != report["before"]["loss"]
    assert after["metrics"].keys() == report["before"]["metrics"].keys() == {"accuracy", "f1_macro"}
    assert report["speed"]["runs"] >= 5
    told = next(note for note in report["notes"] if "of their bytes in fp32" in note)
    assert int(told.split("take ")[1].split("%")[0]) < 95
    assert b"int8" in (tmp_path / "out" / "README.md").read_bytes()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "tokenizer.json", "config.json", "export.json"} <= names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@needs_onnx
@pytest.mark.exports
def test_the_graph_of_another_model_is_no_export(tmp_path: Path) -> None:
    source = whole(tmp_path / "model", "classification")

    def on_another(form: Any, folder: Path, *, base: Path, probe: Path) -> Measured:
        model = load_artefact(source, source, torch.float32)
        with torch.no_grad():
            model.model.classifier.weight.mul_(1.01)
        write_onnx(model, folder, "rows")
        return measure(form, folder, base=base, probe=probe)

    request = Request(source, source, None, "ft:tiny", "onnx", None, 0.0, tmp_path / "out")
    with pytest.raises(TrainFailure, match="its answers differ by") as caught:
        export_model(request, lambda _: None, compare=on_another)
    assert caught.value.code == "artefact_mismatch"
    assert list(tmp_path.iterdir()) == [source]


class Branching(nn.Module):
    """Which way it goes depends on its input: no graph holds that."""

    config = SimpleNamespace(model_type="branching", is_encoder_decoder=False)

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=input_ids * 2.0 if int(input_ids.sum()) > 9 else input_ids * 3.0)


@needs_onnx
def test_a_graph_torch_cannot_draw_is_refused(tmp_path: Path) -> None:
    source = whole(tmp_path / "model", "classification")
    loaded = replace(load_artefact(source, source, torch.float32), model=Branching())
    with pytest.raises(TrainFailure, match="cannot draw the graph of a 'branching'") as caught:
        write_onnx(loaded, tmp_path, "rows")
    assert caught.value.code == "export_not_possible"
    assert list(tmp_path.iterdir()) == [source]


def test_without_its_packages_the_refusal_names_the_command() -> None:
    with pytest.raises(TrainFailure, match="no_such_package_a is not installed") as caught:
        require_onnx(["json", "no_such_package_a"])
    assert caught.value.code == "export_not_possible"
    assert "`node scripts/setup.mjs --onnx`" in str(caught.value.hint)
