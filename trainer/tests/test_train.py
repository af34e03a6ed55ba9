"""Whole runs: events, evaluation, and every way to fail."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

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
from training import Forked, events_of, of_type, train, write_spec

from fettle_trainer import artefact
from fettle_trainer.events import Heartbeat, Phase
from fettle_trainer.failure import TrainFailure, is_out_of_memory
from fettle_trainer.spec import SpecError, parse_spec
from fettle_trainer.tensor_files import read_tensors, write_tensors

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "trainer-event.json"


def chat_spec(folder: Path, **changes: Any) -> dict[str, Any]:
    if not (folder / "model").exists():
        make_decoder(folder / "model")
        write_rows(folder / "rows.jsonl", chat_rows(40))
        write_rows(folder / "validation.jsonl", chat_rows(4, seed=1))
    validation = {"data__validation_path": str(folder / "validation.jsonl")}
    return make_spec(folder / "model", folder / "rows.jsonl", folder / "out", **{**validation, **changes})


def class_spec(folder: Path, **changes: Any) -> dict[str, Any]:
    make_encoder(folder / "model")
    rows = write_rows(folder / "rows.jsonl", class_rows(60))
    defaults = {
        "task": "classification",
        "method": "full",
        "base_model__family": "encoder",
        "data__labels": LABELS,
        "data__validation_path": str(write_rows(folder / "validation.jsonl", class_rows(6, seed=1))),
    }
    return make_spec(folder / "model", rows, folder / "out", **{**defaults, **changes})


def finished(spec: dict[str, Any]) -> list[dict[str, Any]]:
    code, events = train(spec)
    assert code == 0, of_type(events, "failed")
    return events


def test_command_line_trains_proves_and_tells(tmp_path: Path) -> None:
    """The real command, and the proof in a process of its own."""
    spec = chat_spec(tmp_path, method="lora")
    environment = {**os.environ, "PYTHONPATH": str(Path(artefact.__file__).parents[1])}
    command = [sys.executable, "-m", "fettle_trainer", "train", str(write_spec(spec))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    events = events_of(spec)
    assert [event["type"] for event in events if event["type"] not in ("heartbeat", "step", "log")] == [
        "started",
        "data",
        "evaluation",
        "checkpoint",
        "evaluation",
        "checkpoint",
        "finished",
        "verified",
    ]
    assert of_type(events, "verified")[0]["max_abs_diff"] < 1e-4
    steps = of_type(events, "step")
    [data] = of_type(events, "data")
    assert [step["step"] for step in steps] == list(range(1, data["total_steps"] + 1))
    assert steps[-1]["train_loss"] < steps[0]["train_loss"] - 0.5
    assert steps[-1]["epoch"] == 2.0
    assert steps[-1]["num_tokens"] == 2 * data["num_train_tokens"]
    assert of_type(events, "heartbeat")[-1]["rss_bytes"] > 10**7
    assert (data["num_train_rows"], data["num_validation_rows"]) == (40, 4)


def test_every_phase_makes_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each row, micro-batch, update, evaluated batch and checkpoint; with a size if comparable."""
    marks: list[tuple[str, bool]] = []
    mark = Heartbeat.mark

    def seen(self: Heartbeat, phase: Phase, work: float = 0.0) -> None:
        marks.append((phase, work > 0))
        mark(self, phase, work)

    monkeypatch.setattr(Heartbeat, "mark", seen)
    events = finished(chat_spec(tmp_path, hyperparameters__num_train_epochs=1))
    assert list(dict.fromkeys(marks)) == [
        ("loading", False),
        ("reading", False),
        ("tokenising", True),
        ("training", True),
        ("optimiser", True),
        ("evaluating", True),
        ("saving", True),
        ("exporting", False),
        ("verifying", False),
    ]
    counts = Counter(phase for phase, _ in marks)
    assert counts["tokenising"] == 44
    # 40 rows by 4, two micro-batches a step.
    assert (counts["training"], counts["optimiser"]) == (10, len(of_type(events, "step")))
    assert (counts["evaluating"], counts["saving"]) == (1, len(of_type(events, "checkpoint")))


def test_events_keep_the_contract(tmp_path: Path) -> None:
    published = json.loads(SCHEMA.read_text())
    kinds = {one["properties"]["type"]["const"]: one for one in published.get("oneOf") or published["anyOf"]}
    assert list(get_args(Phase)) == kinds["heartbeat"]["properties"]["phase"]["enum"]
    code, events = train(chat_spec(tmp_path, runtime__heartbeat_seconds=0.1))
    assert code == 0
    _, failed = train(
        {**chat_spec(tmp_path), "data": {**chat_spec(tmp_path)["data"], "train_sha256": "0" * 64}}
    )
    seen = set()
    for event in [*events, *failed]:
        properties = kinds[event["type"]]["properties"]
        assert event.keys() <= properties.keys(), event
        assert set(kinds[event["type"]]["required"]) <= event.keys(), event
        seen.add(event["type"])
    assert seen >= {
        "started",
        "log",
        "data",
        "step",
        "evaluation",
        "checkpoint",
        "finished",
        "verified",
        "failed",
    }


@pytest.mark.parametrize(
    ("method", "rate", "epochs"), [("full", 0.01, 6), ("lora", 0.01, 6), ("head", 0.05, 20)]
)
def test_encoder_learns_to_classify(tmp_path: Path, method: str, rate: float, epochs: int) -> None:
    """A head over a frozen random encoder learns slowly."""
    changes = {"hyperparameters__num_train_epochs": epochs, "hyperparameters__learning_rate": rate}
    events = finished(class_spec(tmp_path, method=method, **changes))
    evaluation = of_type(events, "evaluation")[-1]
    assert evaluation["metrics"].keys() == {"accuracy", "f1_macro"}
    losses = [step["train_loss"] for step in of_type(events, "step")]
    assert sum(losses[-8:]) < 0.95 * sum(losses[:8])  # eight steps are an epoch: the same rows
    facts = json.loads((tmp_path / "out" / "artefact" / "fettle.json").read_text())
    assert (facts["labels"], facts["task"], facts["method"]) == (LABELS, "classification", method)
    if method != "lora":
        config = json.loads((tmp_path / "out" / "artefact" / "config.json").read_text())
        assert config["id2label"] == {str(index): label for index, label in enumerate(LABELS)}
        assert not [key for key in config if "attn_implementation" in key]


@pytest.mark.parametrize(("kind", "method"), [("t5", "full"), ("bart", "lora"), ("marian", "full")])
def test_seq2seq_learns(tmp_path: Path, kind: str, method: str) -> None:
    make_seq2seq(tmp_path / "model", kind)
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(40))
    spec = make_spec(
        tmp_path / "model",
        rows,
        tmp_path / "out",
        task="seq2seq",
        method=method,
        base_model__family="seq2seq",
    )
    steps = of_type(finished(spec), "step")
    assert steps[-1]["train_loss"] < steps[0]["train_loss"]


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma3"])
def test_decoders_learn_chat(tmp_path: Path, kind: str) -> None:
    make_decoder(tmp_path / "model", kind)
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(40))
    held = write_rows(tmp_path / "validation.jsonl", chat_rows(4, seed=1))
    events = finished(
        make_spec(tmp_path / "model", rows, tmp_path / "out", method="full", data__validation_path=str(held))
    )
    assert of_type(events, "evaluation")[-1]["valid_loss"] < of_type(events, "step")[0]["train_loss"] - 1
    assert (tmp_path / "out" / "artefact" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "artefact" / "tokenizer.json").is_file()


def test_plain_pairs_train_a_decoder(tmp_path: Path) -> None:
    make_decoder(tmp_path / "model", template=None)
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(40))
    steps = of_type(finished(make_spec(tmp_path / "model", rows, tmp_path / "out")), "step")
    assert steps[-1]["train_loss"] < steps[0]["train_loss"]


def test_best_checkpoint_becomes_the_artefact_and_want_of_gain_ends_the_run(tmp_path: Path) -> None:
    """A rate so high that the loss rises again: the end is early, the best step is not the last."""
    spec = chat_spec(
        tmp_path,
        method="full",
        hyperparameters__learning_rate=0.1,
        hyperparameters__lr_scheduler_type="constant",
        hyperparameters__warmup_ratio=0.0,
        hyperparameters__max_grad_norm=100,
        hyperparameters__num_train_epochs=30,
        hyperparameters__eval_steps=2,
        hyperparameters__early_stopping_patience=2,
        runtime__keep_checkpoints=1,
    )
    events = finished(spec)
    evaluations = of_type(events, "evaluation")
    [end] = of_type(events, "finished")
    [data] = of_type(events, "data")
    assert end["early_stopped"]
    assert end["step"] == end["best_step"] + 2 * 2
    assert end["step"] < data["total_steps"]
    assert min(evaluations, key=lambda e: e["valid_loss"])["step"] == end["best_step"]
    assert [e["step"] for e in evaluations if e["best"]][-1] == end["best_step"]
    kept = read_tensors(tmp_path / "out" / "checkpoints" / str(end["best_step"]) / "model.safetensors")
    made = read_tensors(tmp_path / "out" / "artefact" / "model.safetensors")
    assert all(torch.equal(made[name], kept[name]) for name in kept)


def test_given_validation_rows_are_used(tmp_path: Path) -> None:
    spec = chat_spec(tmp_path)
    write_rows(tmp_path / "validation.jsonl", [*chat_rows(7, seed=9), {"messages": []}])
    events = finished(spec)
    [data] = of_type(events, "data")
    assert (data["num_train_rows"], data["num_validation_rows"]) == (40, 7)
    warnings = [event["message"] for event in of_type(events, "log") if event["level"] == "warn"]
    assert "1 validation rows cannot be used. Line 8: The conversation is empty" in warnings[0]


def test_without_validation_rows_all_are_trained_on_and_the_last_step_is_the_model(tmp_path: Path) -> None:
    """Early stopping is asked for, and has nothing to judge by."""
    spec = chat_spec(
        tmp_path,
        data__validation_path=None,
        hyperparameters__eval_steps=1,
        hyperparameters__early_stopping_patience=1,
    )
    events = finished(spec)
    [data] = of_type(events, "data")
    [end] = of_type(events, "finished")
    assert (data["num_train_rows"], data["num_validation_rows"]) == (40, 0)
    assert not of_type(events, "evaluation")
    assert end["best_step"] == end["step"] == data["total_steps"]
    assert not end["early_stopped"]
    assert [event for event in of_type(events, "log") if "no rows to validate on" in event["message"]]


def test_checkpoints_made_with_validation_rows_are_not_gone_on_from_without(tmp_path: Path) -> None:
    finished(chat_spec(tmp_path))
    code, events = train(chat_spec(tmp_path, data__validation_path=None, attempt=2))
    assert (code, events[-1]["code"]) == (1, "conflict")


def test_smoothing_raises_the_training_loss_alone(tmp_path: Path) -> None:
    plain = of_type(finished(chat_spec(tmp_path)), "step")[0]["train_loss"]
    smooth = chat_spec(tmp_path, hyperparameters__label_smoothing_factor=0.2)
    smooth["output_dir"] = str(tmp_path / "smooth")
    assert of_type(finished(smooth), "step")[0]["train_loss"] != pytest.approx(plain, abs=1e-4)


def test_artefact_that_answers_otherwise_is_not_called_finished(tmp_path: Path) -> None:
    def damaged(folder: Path, base: Path, probe: Path) -> float:
        tensors = read_tensors(folder / "adapter_model.safetensors")
        first = sorted(name for name in tensors if "lora_B" in name)[0]
        tensors[first] += 1.0
        write_tensors(folder / "adapter_model.safetensors", tensors)
        return artefact.verify(folder, base, probe)

    path = write_spec(chat_spec(tmp_path))
    code, events = train(json.loads(path.read_text()), verify=damaged)
    assert code == 1
    assert events[-1]["code"] == "artefact_mismatch"
    assert "its answers differ by" in events[-1]["message"]
    assert not of_type(events, "finished")


def test_verify_command_says_why_it_cannot_load(tmp_path: Path) -> None:
    finished(chat_spec(tmp_path))
    out = tmp_path / "out"
    (out / "artefact" / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(TrainFailure, match="could not be loaded"):
        artefact.verify_in_fresh_process(
            out / "artefact", tmp_path / "model", out / "cache" / "probe.safetensors"
        )


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"data__train_sha256": "0" * 64}, "file_not_usable", "The training rows have changed"),
    ({"base_model__path": "/nowhere"}, "model_not_found", "config.json is missing"),
    ({"hyperparameters__max_length": 8}, "invalid_training_file", "None of 40 rows can be used for training"),
    ({"base_model__adapter_path": "/nowhere"}, "model_not_found", "holds no adapter"),
    ({"task": "seq2seq", "base_model__family": "seq2seq"}, "incompatible_method", "cannot do task 'seq2seq'"),
    (
        {"task": "classification", "base_model__family": "encoder", "data__labels": LABELS},
        "incompatible_method",
        "'llama' is of family 'decoder'",
    ),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_runs_that_cannot_work_fail_with_code_and_reason(
    tmp_path: Path, refused: tuple[dict[str, Any], str, str]
) -> None:
    changes, code, message = refused
    exit_code, events = train(chat_spec(tmp_path, **changes))
    assert exit_code == 1
    assert events[-1]["type"] == "failed"
    assert events[-1]["code"] == code
    assert message in events[-1]["message"]
    assert events[-1]["hint"]


def test_a_bad_spec_ends_with_2_and_no_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, events = train(chat_spec(tmp_path, hyperparameters__learning_rate=2))
    assert (code, events) == (2, [])
    assert "spec.hyperparameters.learning_rate is 2: expected above 0 to 0.1." in capsys.readouterr().err


def test_changed_rows_are_refused_before_they_are_tokenised(tmp_path: Path) -> None:
    """Where layers are compared the weights are asked for their name first; here nothing is compared."""
    spec = class_spec(tmp_path, runtime__layers="plain")
    spec["data"]["train_sha256"] = "0" * 64
    code, events = train(spec)
    assert code == 1
    assert (events[-1]["type"], events[-1]["code"]) == ("failed", "file_not_usable")
    assert not list(tmp_path.rglob("cache/*"))


def test_half_precision_is_refused_for_every_model(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="'float16': expected one of 'auto', 'float32', 'bfloat16'"):
        parse_spec(chat_spec(tmp_path, runtime__dtype="float16"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bfloat16_trains_and_is_proved(tmp_path: Path, method: str) -> None:
    events = finished(chat_spec(tmp_path, method=method, runtime__dtype="bfloat16"))
    steps = of_type(events, "step")
    assert steps[-1]["train_loss"] < steps[0]["train_loss"] - 0.5
    suffix = "adapter_model" if method == "lora" else "model"
    tensors = read_tensors(tmp_path / "out" / "artefact" / f"{suffix}.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_sigterm_before_the_first_step_stops_with_75(tmp_path: Path) -> None:
    spec = chat_spec(tmp_path)
    process = Forked(spec)
    assert process.wait_until(lambda: bool(of_type(events_of(spec), "started"))) is None
    process.kill(signal.SIGTERM)
    assert process.wait() == 75
    assert events_of(spec)[-1]["type"] == "stopped"


def test_want_of_memory_is_known_by_pytorchs_own_error() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_probe_and_schema_commands(capsys: pytest.CaptureFixture[str]) -> None:
    from fettle_trainer.__main__ import main

    assert main(["probe"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_threads"] >= 1
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["fastest_dtype"] in ("float32", "bfloat16")
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["version"] == {"enum": [1]}


def test_runs_of_a_project_share_their_tokens_and_learn_the_same(tmp_path: Path) -> None:
    alone = finished(chat_spec(tmp_path))
    specs = [chat_spec(tmp_path, output_dir=str(tmp_path / name)) for name in ("a", "b")]
    for spec in specs:
        spec["runtime"]["cache_dir"] = str(tmp_path / "tokens")
    runs = [finished(spec) for spec in specs]
    steps = [
        [(one["step"], one["train_loss"]) for one in of_type(events, "step")] for events in (alone, *runs)
    ]
    assert steps[0] == steps[1] == steps[2]
    # Training and validation rows, once for both.
    assert len(list((tmp_path / "tokens").glob("*.safetensors"))) == 2
    assert not list((tmp_path / "a" / "cache").glob("[0-9a-f]*.safetensors"))
