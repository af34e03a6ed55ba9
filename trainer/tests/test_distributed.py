"""Two ranks, started by torchrun, are one run: the same losses, the same artefact, checkpoints for either."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
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
    preference_rows,
    write_rows,
)
from training import TwoRanks, events_of, of_type, train, write_spec

import fettle_trainer
from fettle_trainer import distributed, run_rows
from fettle_trainer.tensor_files import read_tensors


def on_two(spec: dict[str, Any]) -> None:
    codes = TwoRanks(spec).wait()
    assert codes == [0, 0], [events_of(spec)[-1], events_of_second(spec)[-1]]


def events_of_second(spec: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(spec["output_dir"]) / "ranks" / "1" / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(folder: Path, kind: str, output: str, **changes: Any) -> dict[str, Any]:
    """Rows of uneven lengths; 21 of them by 8 a step, so that the last step of an epoch has 5."""
    task, family, model, rows = {
        "llama": ("chat", "decoder", make_decoder, chat_rows),
        "qwen2": ("classification", "decoder", make_decoder, class_rows),
        "bert": ("classification", "encoder", make_encoder, class_rows),
        "t5": ("seq2seq", "seq2seq", make_seq2seq, pair_rows),
        "preference": ("preference", "decoder", make_decoder, preference_rows),
    }[kind]
    if not (folder / kind).exists():
        model(folder / kind, "llama" if kind == "preference" else kind)
        write_rows(folder / f"{kind}.jsonl", rows(21, seed=3))
        write_rows(folder / f"{kind}.validation.jsonl", rows(9, seed=4))
    return make_spec(
        folder / kind,
        folder / f"{kind}.jsonl",
        folder / output,
        task=task,
        base_model__family=family,
        data__labels=LABELS if task == "classification" else None,
        data__validation_path=str(folder / f"{kind}.validation.jsonl"),
        hyperparameters__dropout=0.0,
        hyperparameters__per_device_train_batch_size=2,
        hyperparameters__gradient_accumulation_steps=4,
        # AdamW makes a step of the rate's size even of a gradient that is nothing but rounding.
        hyperparameters__learning_rate=0.001,
        **changes,
    )


def told(spec: dict[str, Any], kind: str, *names: str) -> list[float]:
    return [event[name] for event in of_type(events_of(spec), kind) for name in names]


def weights(spec: dict[str, Any]) -> dict[str, torch.Tensor]:
    [path] = (Path(spec["output_dir"]) / "artefact").glob("*model.safetensors")
    return read_tensors(path)


CASES = [
    ("llama", "lora", "ddp"),
    ("llama", "full", "fsdp"),
    ("preference", "lora", "fsdp"),
    pytest.param(("preference", "full", "ddp"), marks=pytest.mark.slow),
    pytest.param(("llama", "full", "ddp"), marks=pytest.mark.slow),
    pytest.param(("llama", "lora", "fsdp"), marks=pytest.mark.slow),
    pytest.param(("bert", "full", "ddp"), marks=pytest.mark.slow),
    pytest.param(("bert", "lora", "fsdp"), marks=pytest.mark.slow),
    pytest.param(("qwen2", "lora", "fsdp"), marks=pytest.mark.slow),
    pytest.param(("t5", "full", "fsdp"), marks=pytest.mark.slow),
]
EITHER = ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_take_the_steps_of_one(folder: Path, case: tuple[str, str, str]) -> None:
    kind, method, parallelism = case
    one = make(folder, kind, f"{'-'.join(case)}-one", method=method)
    two = make(folder, kind, f"{'-'.join(case)}-two", method=method, runtime__parallelism=parallelism)
    on_two(two)
    code, events = train(one)
    assert code == 0, events[-1]
    names = ("train_loss", "grad_norm", "train_mean_token_accuracy", "num_tokens")
    assert told(two, "step", *names) == pytest.approx(told(one, "step", *names), rel=2e-4)
    assert len(told(two, "step", "step")) == 6
    # The nine rows held out count once each, though two ranks cannot share them evenly.
    assert told(two, "evaluation", "valid_loss") == pytest.approx(
        told(one, "evaluation", "valid_loss"), rel=2e-4
    )
    assert of_type(events_of(two), "evaluation")[-1]["metrics"] == pytest.approx(
        of_type(events_of(one), "evaluation")[-1]["metrics"], rel=2e-3, abs=2e-4
    )
    ours, theirs = weights(two), weights(one)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=2e-2, atol=2e-3, msg=name)
    assert of_type(events_of(two), "verified")[0]["max_abs_diff"] < 1e-3


def slow(folder: Path, output: str, **changes: Any) -> dict[str, Any]:
    """Long enough to be stopped in the middle."""
    epochs = {"hyperparameters__num_train_epochs": 4, "runtime__checkpoint_steps": 2}
    return make(folder, "llama", output, method="lora", **{**epochs, **changes})


@pytest.mark.parametrize("parallelism", EITHER)
def test_a_checkpoint_of_two_ranks_is_gone_on_from_by_one_and_by_two(folder: Path, parallelism: str) -> None:
    whole = slow(folder, f"whole-{parallelism}")
    code, _ = train(whole)
    assert code == 0
    spec = slow(folder, f"cut-{parallelism}", runtime__parallelism=parallelism)
    pair = TwoRanks(spec)
    assert pair.ranks[0].wait_until(lambda: max(told(spec, "step", "step"), default=0) >= 3) is None
    # The signal goes to one rank alone; both stop, at the same step.
    pair.ranks[1].kill(signal.SIGTERM)
    assert pair.wait() == [75, 75]
    last = events_of(spec)[-1]
    assert (last["type"], last["reason"]) == ("stopped", "signal")
    assert events_of_second(spec)[-1]["step"] == last["step"]
    shutil.copytree(spec["output_dir"], folder / f"again-{parallelism}")
    code, events = train({**spec, "attempt": 2})
    assert code == 0, events[-1]
    assert of_type(events, "started")[-1]["resumed_from_step"] == last["step"]
    assert told(spec, "step", "train_loss") == pytest.approx(told(whole, "step", "train_loss"), rel=1e-3)
    again = {**spec, "output_dir": str(folder / f"again-{parallelism}"), "attempt": 2}
    on_two(again)
    assert of_type(events_of(again), "started")[-1]["resumed_from_step"] == last["step"]
    assert told(again, "step", "train_loss") == pytest.approx(told(whole, "step", "train_loss"), rel=1e-3)


@pytest.mark.parametrize("parallelism", EITHER)
def test_two_ranks_killed_with_dropout_on_end_in_the_same_bits(folder: Path, parallelism: str) -> None:
    """Each rank drops out by a generator of its own, which the checkpoint holds."""
    changes = {"hyperparameters__lora_dropout": 0.2, "runtime__parallelism": parallelism}
    straight = slow(folder, f"straight-{parallelism}", **changes)
    on_two(straight)
    spec = slow(folder, f"killed-{parallelism}", **changes)
    pair = TwoRanks(spec)
    assert pair.ranks[0].wait_until(lambda: max(told(spec, "step", "step"), default=0) >= 6) is None
    for rank in pair.ranks:
        rank.kill()
    assert pair.wait() == [-signal.SIGKILL] * 2
    on_two({**spec, "attempt": 2})
    assert of_type(events_of(spec), "started")[-1]["resumed_from_step"] >= 4
    ours, theirs = weights(spec), weights(straight)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_ranks_that_would_train_different_models_are_refused(folder: Path) -> None:
    spec = make(folder, "llama", "disagree")
    other = make(folder, "llama", "disagree-other", hyperparameters__num_train_epochs=3)
    Path(spec["output_dir"]).mkdir()
    Path(other["output_dir"]).symlink_to(spec["output_dir"])
    pair = TwoRanks(spec, second=other)
    assert pair.wait() == [1, 1]
    assert events_of(spec)[-1]["code"] == "conflict"
    assert "do not begin at the same place: [[0, 21, 6], [0, 21, 9]]" in events_of(spec)[-1]["message"]


@pytest.mark.parametrize("knows", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_first_rank_alone_looks_for_what_the_starting_model_said(folder: Path, knows: int) -> None:
    """One rank's disk holds it, the other's does not: a split model answers on all ranks together or not at
    all, else one waits for the other for ever."""
    one = make(folder, "preference", f"known-to-{knows}-one", method="full")
    code, events = train(one)
    assert code == 0, events[-1]
    ranks = [
        make(folder, "preference", f"known-to-{knows}-{rank}", method="full", runtime__parallelism="fsdp")
        for rank in (0, 1)
    ]
    answers = "cache/reference-train.safetensors"
    target = Path(ranks[knows]["output_dir"]) / answers
    target.parent.mkdir(parents=True)
    shutil.copy(Path(one["output_dir"]) / answers, target)
    assert TwoRanks(ranks[0], second=ranks[1]).wait() == [0, 0]
    assert told(ranks[0], "step", "train_loss") == pytest.approx(told(one, "step", "train_loss"), rel=2e-4)


def test_the_first_rank_alone_asks_the_teacher(folder: Path) -> None:
    one = make(folder, "bert", "taught-one", method="head")
    other = make(folder, "bert", "teacher", method="head")
    other["hyperparameters"]["learning_rate"] = 0.1
    assert train(other)[0] == 0
    two = make(folder, "bert", "taught-two", method="head", runtime__parallelism="ddp")
    teacher = {"name": "ft:t", "path": str(folder / "teacher" / "artefact"), "family": "encoder"}
    for spec in (one, two):
        spec["teacher"] = {**teacher, "adapter_path": None}
    code, events = train(one)
    assert code == 0, events[-1]
    on_two(two)
    assert told(two, "step", "train_loss") == pytest.approx(told(one, "step", "train_loss"), rel=2e-4)
    asked = [
        sum("has answered" in event["message"] for event in of_type(made, "log"))
        for made in (events_of(two), events_of_second(two))
    ]
    assert asked == [1, 0]


@pytest.mark.slow
def test_a_rank_that_tokenises_for_long_is_waited_for(folder: Path) -> None:
    """Longer than a silent peer is waited for afterwards: the second rank reads its rows once the first has
    been waiting for that long."""
    spec = make(folder, "llama", "late")
    patience = 5.0

    def before(rank: int) -> None:
        distributed._PATIENCE = timedelta(seconds=patience)
        plain = run_rows.load_dataset

        def slow_to_read(*arguments: Any, **named: Any) -> Any:
            deadline = time.monotonic() + 60
            while rank == 1 and time.monotonic() < deadline:
                waited = max((beat["idle_s"] for beat in of_type(events_of(spec), "heartbeat")), default=0)
                if waited > patience + 1:
                    break
                time.sleep(0.05)
            return plain(*arguments, **named)

        run_rows.load_dataset = slow_to_read

    assert TwoRanks(spec, before=before).wait() == [0, 0], events_of(spec)[-1]
    beats = [beat for beat in of_type(events_of(spec), "heartbeat") if beat["idle_s"] > patience]
    assert {beat["phase"] for beat in beats} == {"reading"}
    assert len(told(spec, "step", "step")) == 6


@pytest.mark.slow
def test_torchrun_starts_the_command(folder: Path) -> None:
    """As a user would; each rank proves nothing twice."""
    spec = make(folder, "llama", "torchrun", method="full", runtime__parallelism="fsdp")
    environment = {**os.environ, "PYTHONPATH": str(Path(fettle_trainer.__file__).parents[1])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "fettle_trainer", "train", str(write_spec(spec))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [event["type"] for event in events_of(spec)][-2:] == ["finished", "verified"]
    assert not of_type(events_of_second(spec), "checkpoint")
