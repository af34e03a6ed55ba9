"""Killing a run anywhere and going on gives the same bits."""

import hashlib
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import chat_rows, make_decoder, make_spec, write_rows
from training import Forked, events_of, of_type, train

KILLS = 12


def make(folder: Path, output: str, **changes: Any) -> dict[str, Any]:
    """Dropout on, 8 micro-batches a step, an evaluation in mid-epoch: every state that must come back."""
    model, rows = folder / "model", folder / "rows.jsonl"
    if not model.exists():
        make_decoder(model, "llama")
        write_rows(rows, chat_rows(72, seed=3))
        write_rows(folder / "validation.jsonl", chat_rows(8, seed=4))
    return make_spec(
        model,
        rows,
        folder / output,
        **{
            "data__validation_path": str(folder / "validation.jsonl"),
            "hyperparameters__lora_dropout": 0.1,
            "hyperparameters__per_device_train_batch_size": 1,
            "hyperparameters__gradient_accumulation_steps": 8,
            "hyperparameters__num_train_epochs": 3,
            "hyperparameters__lr_scheduler_type": "cosine",
            "hyperparameters__eval_steps": 5,
            "runtime__checkpoint_steps": 2,
            **changes,
        },
    )


def weights_sha256(spec: dict[str, Any]) -> str:
    path = Path(spec["output_dir"]) / "artefact" / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def after(spec: dict[str, Any], steps: int, polls: int) -> Callable[[], bool]:
    """True `polls` looks after this many steps more have been told."""
    before = len(of_type(events_of(spec), "step"))
    looks = iter(range(polls))
    return lambda: len(of_type(events_of(spec), "step")) >= before + steps and next(looks, None) is None


def steps_told(spec: dict[str, Any]) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step; a step told twice must be told alike."""
    told: dict[int, tuple[float, float]] = {}
    for event in of_type(events_of(spec), "step"):
        values = (event["train_loss"], event["grad_norm"])
        assert told.setdefault(event["step"], values) == values, event
    return told


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted run, checkpointed at other steps than the interrupted ones."""
    spec = make(tmp_path_factory.mktemp("resume"), "straight", runtime__checkpoint_steps=0)
    code, events = train(spec)
    assert code == 0, of_type(events, "failed")
    return spec


def test_kill_at_random_points_ends_in_the_same_bits(straight: dict[str, Any]) -> None:
    spec = make(Path(straight["output_dir"]).parent, "killed")
    output = Path(spec["output_dir"])
    random_ = random.Random(20)
    total = len(steps_told(straight))
    kills: list[str] = []
    while len(kills) < KILLS:
        spec["attempt"] = len(kills) + 1
        process = Forked(spec)
        if len(kills) % 3 == 2:
            # In the middle of writing a checkpoint.
            ended = process.wait_until(lambda: any(output.glob("checkpoints/.partial-*")))
        else:
            # After some steps, and a random part of the next: between its micro-batches.
            ended = process.wait_until(after(spec, random_.randint(1, 3), random_.randint(0, 12)))
        assert ended is None, f"ended with {ended} before kill {len(kills) + 1}"
        process.kill()
        assert process.wait() == -signal.SIGKILL
        done = steps_told(spec)
        kills.append(
            f"step {max(done, default=0)}, partial {len(list(output.glob('checkpoints/.partial-*')))}"
        )
    spec["attempt"] = len(kills) + 1
    assert Forked(spec).wait() == 0
    assert weights_sha256(spec) == weights_sha256(straight), kills
    assert steps_told(spec) == steps_told(straight)
    assert len(steps_told(spec)) == total
    events = events_of(spec)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    resumed = [event["resumed_from_step"] for event in of_type(events, "started")]
    assert len([step for step in resumed if step]) >= 3, resumed
    assert any(kill.endswith("partial 1") for kill in kills), kills


def test_sigterm_writes_a_checkpoint_and_resumes_in_the_same_bits(straight: dict[str, Any]) -> None:
    spec = make(Path(straight["output_dir"]).parent, "stopped", runtime__checkpoint_steps=0)
    for attempt, steps in enumerate((3, 9), 1):
        spec["attempt"] = attempt
        process = Forked(spec)
        assert process.wait_until(lambda steps=steps: max(steps_told(spec), default=0) >= steps) is None
        process.kill(signal.SIGTERM)
        assert process.wait() == 75
        last = events_of(spec)[-1]
        assert (last["type"], last["reason"]) == ("stopped", "signal")
        assert of_type(events_of(spec), "checkpoint")[-1]["step"] == last["step"]
    spec["attempt"] = 3
    assert Forked(spec).wait() == 0
    assert weights_sha256(spec) == weights_sha256(straight)
    assert steps_told(spec) == steps_told(straight)
    starts = of_type(events_of(spec), "started")
    stops = of_type(events_of(spec), "stopped")
    assert [start["resumed_from_step"] for start in starts] == [None, stops[0]["step"], stops[1]["step"]]


def test_finished_run_started_again_finishes_again(straight: dict[str, Any]) -> None:
    before = weights_sha256(straight)
    code, events = train({**straight, "attempt": 2})
    assert code == 0
    assert weights_sha256(straight) == before
    assert of_type(events, "started")[-1]["resumed_from_step"] == of_type(events, "finished")[-1]["step"]


def test_checkpoints_of_another_spec_are_refused(straight: dict[str, Any]) -> None:
    other = make(Path(straight["output_dir"]).parent, "straight", hyperparameters__learning_rate=0.02)
    code, events = train(other)
    assert code == 1
    assert events[-1]["code"] == "conflict"
    assert "of another run" in events[-1]["message"]
