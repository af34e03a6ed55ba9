"""A checkpoint written as a model is what the run would have written at that step."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
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

from fettle_trainer import adapter_kinds, artefact
from fettle_trainer.__main__ import main
from fettle_trainer.adapters import lora_layers
from fettle_trainer.checkpoint_model import Start, export_checkpoint
from fettle_trainer.failure import TrainFailure
from fettle_trainer.spec import parse_spec
from fettle_trainer.tensor_files import read_tensors, write_tensors


def run_of(folder: Path, task: str, method: str, **changes: Any) -> dict[str, Any]:
    """A finished run with a checkpoint of each evaluation; its spec."""
    kinds: dict[str, dict[str, Any]] = {
        "chat": {},
        "classification": {"base_model__family": "encoder", "data__labels": LABELS},
        "seq2seq": {"base_model__family": "seq2seq"},
    }
    if not (folder / "model").exists():
        makers = {"chat": make_decoder, "classification": make_encoder}
        makers.get(task, lambda path: make_seq2seq(path, "marian"))(folder / "model")
    rows = {"chat": chat_rows, "classification": class_rows, "seq2seq": pair_rows}[task](40)
    spec = make_spec(
        folder / "model",
        write_rows(folder / "rows.jsonl", rows),
        folder / "out",
        **{"task": task, "method": method, "runtime__checkpoint_steps": 2, **kinds[task], **changes},
    )
    code, events = train(spec)
    assert code == 0, of_type(events, "failed")
    return spec


def steps_of(spec: dict[str, Any]) -> list[int]:
    return sorted(int(path.name) for path in (Path(spec["output_dir"]) / "checkpoints").iterdir())


def write(spec: dict[str, Any], step: int, **start: Path) -> Path:
    run = Path(spec["output_dir"])
    out = run / "models" / str(step)
    began = Start(start.get("base", Path(spec["base_model"]["path"])), start.get("adapter"))
    export_checkpoint(parse_spec(spec), run, step, start=began, out=out)
    return out


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("chat", "lora"),
        ("chat", "full"),
        ("classification", "lora"),
        ("classification", "head"),
        ("seq2seq", "full"),
    ],
)
def test_the_checkpoint_the_artefact_came_from_gives_the_same_bytes(
    tmp_path: Path, task: str, method: str
) -> None:
    spec = run_of(tmp_path, task, method)
    run = Path(spec["output_dir"])
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    best = of_type(events, "finished")[0]["best_step"]
    before = artefact.folder_sha256(run / "checkpoints" / str(best))
    out = write(spec, best)
    assert artefact.folder_sha256(out) == artefact.folder_sha256(run / "artefact")
    assert artefact.folder_sha256(run / "checkpoints" / str(best)) == before
    other = write(spec, next(step for step in steps_of(spec) if step != best))
    assert artefact.folder_sha256(other) != artefact.folder_sha256(out)


def test_it_answers_with_the_weights_of_its_step(tmp_path: Path) -> None:
    """Against the base with the checkpoint's tensors put in by hand."""
    spec = run_of(tmp_path, "chat", "full")
    step = steps_of(spec)[0]
    base = Path(spec["base_model"]["path"])
    loaded = artefact.load_artefact(write(spec, step), base, torch.float32)
    by_hand = artefact.load_artefact(Path(spec["output_dir"]) / "artefact", base, torch.float32)
    weights = read_tensors(Path(spec["output_dir"]) / "checkpoints" / str(step) / "model.safetensors")
    with torch.no_grad():
        for name, parameter in by_hand.model.named_parameters():
            parameter.copy_(weights[name])
        ids = torch.arange(12)[None]
        assert torch.equal(loaded.model(input_ids=ids).logits, by_hand.model(input_ids=ids).logits)


def test_a_run_that_began_from_an_adapter_keeps_its_settings_and_can_be_moved(tmp_path: Path) -> None:
    first = run_of(tmp_path, "chat", "lora", hyperparameters__lora_r=3)
    adapter = write(first, steps_of(first)[0])
    second = {**first, "output_dir": str(tmp_path / "second")}
    second["base_model"] = {**first["base_model"], "adapter_path": str(adapter)}
    second["hyperparameters"] = {**first["hyperparameters"], "lora_r": 8}
    assert train(second)[0] == 0
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "model", moved)
    out = write(second, steps_of(second)[0], base=moved, adapter=adapter)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (3, str(moved))


def test_one_that_is_there_stays_and_leftovers_of_a_killed_writer_go(tmp_path: Path) -> None:
    spec = run_of(tmp_path, "chat", "lora")
    step = steps_of(spec)[0]
    partial = Path(spec["output_dir"]) / "models" / f".{step}.partial"
    partial.mkdir(parents=True)
    (partial / "fettle.json").write_text("{")
    out = write(spec, step)
    assert not partial.exists()
    stamp = (out / "adapter_model.safetensors").stat().st_mtime_ns
    shutil.rmtree(Path(spec["output_dir"]) / "checkpoints")
    assert (write(spec, step) / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_pruned_damaged_and_foreign_checkpoints_are_refused_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = run_of(tmp_path, "chat", "lora")
    run, (first, *_, last) = Path(spec["output_dir"]), steps_of(spec)
    (run / "spec.json").write_text(json.dumps(spec))
    command = ["checkpoint", "--run", str(run), "--base", spec["base_model"]["path"], "--json"]
    assert main([*command, "--step", "999", "--out", str(run / "models" / "999")]) == 1
    failed = json.loads(capsys.readouterr().out.splitlines()[-1])["failed"]
    assert failed["code"] == "model_unavailable"
    assert "The checkpoint of step 999 cannot be used as a model" in failed["message"]
    weights = run / "checkpoints" / str(first) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(TrainFailure, match=r"model\.safetensors has not the"):
        write(spec, first)
    foreign = {**spec, "hyperparameters": {**spec["hyperparameters"], "target_modules": ["q_proj"]}}
    with pytest.raises(TrainFailure, match="do not fit the model"):
        write(foreign, last)
    assert [path.name for path in (run / "models").iterdir()] == [".lock"]
    assert main([*command, "--step", str(last), "--out", str(run / "models" / str(last))]) == 0
    assert (run / "models" / str(last) / "fettle.json").is_file()


def test_the_command_ends_in_order_while_stdin_is_open_and_at_once_when_it_is_closed(tmp_path: Path) -> None:
    spec = run_of(tmp_path, "chat", "lora")
    environment = {**os.environ, "PYTHONPATH": str(Path(artefact.__file__).parents[1])}
    command = [sys.executable, "-m", "fettle_trainer", "merge", "--json", "--end-with-stdin"]
    command += ["--base", spec["base_model"]["path"], "--adapter", str(Path(spec["output_dir"]) / "artefact")]

    def start(out: str) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*command, "--out", str(tmp_path / out)], env=environment, **pipes)

    whole = start("whole")
    assert whole.wait(60) == 0, whole.stderr and whole.stderr.read()
    assert whole.stdout
    assert json.loads(whole.stdout.read().splitlines()[-1])["max_abs_diff"] < 1e-4
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    left = start("left")
    left.communicate(timeout=60)
    assert left.returncode == 1
    assert not (tmp_path / "left").exists()


def test_merging_that_changes_answers_is_refused_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = run_of(tmp_path, "chat", "lora")
    tensors = Path(spec["output_dir"]) / "artefact" / "adapter_model.safetensors"
    values = read_tensors(tensors)
    write_tensors(tensors, {name: value * 10 for name, value in values.items()})

    def half(model: Any, _: Any) -> None:
        for _, layer in lora_layers(model):
            layer.lora_B.data /= 2

    monkeypatch.setattr(adapter_kinds, "merge", half)
    with pytest.raises(TrainFailure, match="merging changes its answers"):
        artefact.merge(tmp_path / "model", tensors.parent, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert not list(tmp_path.glob(".merged*"))
