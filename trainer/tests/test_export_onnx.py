"""ONNX: one graph for any batch and length, and its int8 with what it costs and gains."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_export_gguf import export

from fettle_trainer.exports.onnx_model import OnnxModel
from fettle_trainer.failure import TrainFailure
from fettle_trainer.models import load_model

# An environment from before these packages were in the lock: `npm test` sets up anew, --no-setup does not.
pytestmark = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed here")


def whole(folder: Path, task: str) -> Path:
    """A model tuned whole."""
    makers: dict[str, Any] = {
        "chat": lambda: tiny.make_decoder(folder),
        "classification": lambda: tiny.make_encoder(folder),
        "seq2seq": lambda: tiny.make_seq2seq(folder, "t5"),
    }
    makers[task]()
    labels = tuple(tiny.LABELS) if task == "classification" else None
    family = {"chat": "decoder", "classification": "encoder", "seq2seq": "seq2seq"}[task]
    if labels is not None:  # as the run saves it: with its head
        model, _ = load_model(folder, "classification", labels=labels, dtype=torch.float32)
        model.save_pretrained(folder)
    facts = {"task": task, "family": family, "labels": labels, "method": "full", "max_length": 256}
    (folder / "fettle.json").write_text(json.dumps({**facts, "stop_token_ids": [3], "base_model": "tiny"}))
    return folder


@pytest.mark.parametrize("task", ["chat", "classification"])
def test_the_graph_answers_as_the_model_for_any_batch_and_length(task: Any, tmp_path: Path) -> None:
    source = whole(tmp_path / "model", task)
    report = export(source, tmp_path / "out", form="onnx")
    assert report["after"]["max_abs_diff"] < 1e-4
    assert report["after"]["agreement"] == 1
    labels = tuple(tiny.LABELS) if task == "classification" else None
    model, _ = load_model(source, task, labels=labels, dtype=torch.float32)
    model.eval()
    graph = OnnxModel(tmp_path / "out" / "model.onnx")
    for rows, width in ((1, 1), (3, 17), (5, 40)):
        ids = torch.randint(5, 60, (rows, width))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs["attention_mask"][0, (width + 1) // 2 :] = 0
        with torch.no_grad():
            expected = model(**inputs).logits.numpy()
        if task == "classification":
            inputs["token_type_ids"] = torch.zeros_like(ids)
        found = graph.run({name: value.numpy() for name, value in inputs.items()}).numpy()
        # Behind the end of a row nobody looks.
        kept = inputs["attention_mask"].bool().numpy() if task == "chat" else ...
        assert found.shape == expected.shape
        assert float(np.abs(found - expected)[kept].max()) < 1e-4


def test_a_graph_torch_cannot_draw_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = whole(tmp_path / "model", "seq2seq")
    with pytest.raises(TrainFailure, match="cannot draw the graph of a 't5'") as caught:
        export(source, tmp_path / "out", form="onnx")
    assert caught.value.code == "export_not_possible"
    assert list(tmp_path.iterdir()) == [source]


def test_int8_is_smaller_and_tells_what_it_costs_and_gains(tmp_path: Path) -> None:
    source = whole(tmp_path / "model", "classification")
    report = export(source, tmp_path / "out", form="onnx", quantize="int8")
    assert report["after"]["max_abs_diff"] is None
    assert 0 <= report["after"]["agreement"] <= 1
    assert report["after"]["loss"] != report["before"]["loss"]
    assert report["speed"]["runs"] >= 5
    assert b"int8" in (tmp_path / "out" / "README.md").read_bytes()
    types = {one.name for one in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "tokenizer.json", "config.json", "export.json"} <= types
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
