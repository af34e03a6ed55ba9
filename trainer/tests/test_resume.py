"""Killing a run anywhere and going on gives the same bits."""

import hashlib
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny import build, chat_rows, make_decoder, make_spec, make_tokenizer, save, write_rows
from training import Forked, events_of, of_type, train

from fettle_trainer import train as training_loop
from fettle_trainer.events import peak_rss_bytes
from fettle_trainer.tensor_files import read_tensors, write_tensors

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


def test_a_resume_needs_no_more_memory_than_the_run_had(tmp_path: Path) -> None:
    """Weights, gradients and moments of 38 MB each: whatever were held twice would show."""
    tokenizer = make_tokenizer()
    config = transformers.LlamaConfig(
        hidden_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1536,
        vocab_size=len(tokenizer),
        eos_token_id=3,
    )
    model = save(build(transformers.AutoModelForCausalLM, config), tokenizer, tmp_path / "model")
    size = (model / "model.safetensors").stat().st_size
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(16))
    settings: dict[str, Any] = {
        "method": "full",
        "hyperparameters__per_device_train_batch_size": 2,
        "hyperparameters__gradient_accumulation_steps": 1,
        "runtime__checkpoint_steps": 2,
    }
    spec = make_spec(model, rows, tmp_path / "out", **settings)

    def peak_at_step_four() -> int:
        """Of a process that is gone before it writes the checkpoint of that step."""
        told = tmp_path / "peak"
        plain = training_loop.Training._train_step

        def step(training: Any) -> None:
            plain(training)
            if training.step == 4:
                told.write_text(str(peak_rss_bytes()))
                os._exit(9)

        def before() -> None:
            training_loop.Training._train_step = step  # type: ignore[method-assign]

        assert Forked(spec, before=before).wait() == 9, events_of(spec)[-1]
        return int(told.read_text())

    fresh, resumed = peak_at_step_four(), peak_at_step_four()
    assert [start["resumed_from_step"] for start in of_type(events_of(spec), "started")] == [None, 2]
    assert resumed <= fresh + size / 4, (fresh, resumed, size)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "hyperparameter": (
        lambda spec: spec["hyperparameters"].update(learning_rate=0.02, num_train_epochs=4),
        [
            "hyperparameters.learning_rate was 0.01 and is 0.02",
            "hyperparameters.num_train_epochs was 3 and is 4",
        ],
    ),
    "seed": (lambda spec: spec.update(seed=8), ["seed was 7 and is 8"]),
    "training rows": (
        lambda spec: rewrite(spec, "train_path", chat_rows(72, seed=5)),
        ["data.training rows was SHA-256 ", "… and is SHA-256 "],
    ),
    "validation rows": (
        lambda spec: rewrite(spec, "validation_path", chat_rows(8, seed=5)),
        ["data.validation rows was SHA-256 "],
    ),
    "no validation rows": (
        lambda spec: spec["data"].update(validation_path=None),
        ["data.validation rows was SHA-256 ", "… and is none"],
    ),
    "one weight of the model": (
        lambda spec: nudge(Path(spec["base_model"]["path"])),
        ["base_model.weights was "],
    ),
    "the model's tokenizer": (
        lambda spec: (Path(spec["base_model"]["path"]) / "chat_template.jinja").write_text("{{ messages }}"),
        ["base_model.tokenizer was "],
    ),
}


def rewrite(spec: dict[str, Any], name: str, rows: list[dict[str, Any]]) -> None:
    path = write_rows(Path(spec["data"][name]), rows)
    if name == "train_path":
        spec["data"]["train_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()


def nudge(model: Path) -> None:
    weights = read_tensors(model / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    write_tensors(model / "model.safetensors", weights)


@pytest.mark.parametrize("change", CHANGES)
def test_checkpoints_of_another_run_are_refused_with_the_difference(
    straight: dict[str, Any], tmp_path: Path, change: str
) -> None:
    origin = Path(straight["output_dir"]).parent
    shutil.copytree(origin / "straight", tmp_path / "straight")
    for name in ("model", "rows.jsonl", "validation.jsonl"):
        copy = shutil.copytree if (origin / name).is_dir() else shutil.copy
        copy(origin / name, tmp_path / name)
    spec = make(tmp_path, "straight")
    apply, told = CHANGES[change]
    apply(spec)
    code, events = train(spec)
    assert (code, events[-1]["code"]) == (1, "conflict")
    assert "are of another run: " in events[-1]["message"]
    for text in told:
        assert text in events[-1]["message"]
    named = {part.split(" was ")[0] for part in events[-1]["message"].split(": ", 1)[1].split("; ")}
    assert len(named) == (2 if change == "hyperparameter" else 1), events[-1]["message"]
    assert "output_dir of its own" in events[-1]["hint"]


def copy_all(spec: dict[str, Any], folder: Path) -> None:
    """A run with its model and rows."""
    for path in Path(spec["output_dir"]).parent.iterdir():
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, folder / path.name)


def test_a_run_moved_to_another_folder_with_its_model_and_rows_goes_on(
    straight: dict[str, Any], tmp_path: Path
) -> None:
    copy_all(straight, tmp_path)
    moved = make(tmp_path, "straight", runtime__num_threads=2, attempt=2)
    code, events = train(moved)
    assert code == 0, events[-1]
    assert of_type(events, "started")[-1]["resumed_from_step"] == of_type(events, "finished")[0]["step"]
    assert weights_sha256(moved) == weights_sha256(straight)


def test_layers_that_are_computed_otherwise_from_a_checkpoint_on_are_told(
    straight: dict[str, Any], tmp_path: Path
) -> None:
    copy_all(straight, tmp_path)
    warned = {}
    for layers in ("auto", "plain"):
        spec = make(tmp_path, "straight", runtime__layers=layers)
        spec["attempt"] = 2 if layers == "auto" else 3
        _, events = train(spec)
        warned[layers] = [
            event["message"]
            for event in of_type(events, "log")
            if event["attempt"] == spec["attempt"] and "to the bit" in event["message"]
        ]
    assert warned["auto"] == []
    assert len(warned["plain"]) == 1
    assert warned["plain"][0].startswith(
        "From here on its own layers, as runtime.layers is 'plain'; before, "
    )
