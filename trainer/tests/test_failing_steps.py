"""Steps that go wrong: no memory, NaN, a loss that only rises."""

import math
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import chat_rows, make_decoder, make_spec, write_rows
from training import Forked, events_of, of_type, train

from fettle_trainer import collate
from fettle_trainer import train as training_loop
from fettle_trainer.divergence import LossTrend, divergence
from fettle_trainer.events import rss_bytes
from fettle_trainer.optim import set_rate
from fettle_trainer.step import Stepper
from fettle_trainer.tensor_files import read_tensors, write_tensors

TOO_MANY = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"


def spec_of(folder: Path, output: str = "out", **changes: Any) -> dict[str, Any]:
    if not (folder / "model").exists():
        make_decoder(folder / "model")
        write_rows(folder / "rows.jsonl", chat_rows(40))
        write_rows(folder / "validation.jsonl", chat_rows(6, seed=1))
    defaults = {
        "data__validation_path": str(folder / "validation.jsonl"),
        "hyperparameters__per_device_train_batch_size": 8,
        "hyperparameters__gradient_accumulation_steps": 1,
        "hyperparameters__num_train_epochs": 1,
    }
    return make_spec(folder / "model", folder / "rows.jsonl", folder / output, **{**defaults, **changes})


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["train_loss"] for event in of_type(events, "step")]


class Scarce:
    """Lets no more than `rows` rows into the model at once, from call `after` on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int, after: int = 0) -> None:
        self.sizes: list[int] = []
        plain = Stepper.loss

        def loss(stepper: Stepper, batch: Any, smoothing: float) -> Any:
            self.sizes.append(len(batch.rows))
            if len(self.sizes) > after and len(batch.rows) > rows:
                raise RuntimeError(TOO_MANY)
            return plain(stepper, batch, smoothing)

        monkeypatch.setattr(Stepper, "loss", loss)


@pytest.mark.parametrize("after", [0, 3])
def test_want_of_memory_halves_the_micro_batch_and_keeps_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    code, whole = train(spec_of(tmp_path))
    assert code == 0
    scarce = Scarce(monkeypatch, rows=2, after=after)
    spec = spec_of(tmp_path, "scarce", runtime__checkpoint_steps=2)
    code, events = train(spec)
    assert code == 0, events[-1]
    assert losses(events) == pytest.approx(losses(whole), rel=1e-4)
    first, second = (event for event in of_type(events, "log") if event["level"] == "warn")
    assert "did not suffice for 8 rows at once ([enforce fail" in first["message"]
    assert f"from step {after + 1} on micro-batches have 4. A step still learns 8 rows" in first["message"]
    assert (first["data"], second["data"]) == ({"rows_per_batch": 4}, {"rows_per_batch": 2})
    steps = len(losses(events))
    # The one that failed was begun anew; nothing larger was tried again.
    assert scarce.sizes == [8] * after + [8, 4] + [2] * 4 * (steps - after)


def test_a_resumed_run_does_not_try_the_larger_micro_batch_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, runtime__checkpoint_steps=1)
    Scarce(monkeypatch, rows=2)
    plain = Stepper.train_step

    def ends_at_step_three(stepper: Stepper, *arguments: Any, **ranks: Any) -> Any:
        if len(losses(events_of(spec))) == 2:
            raise OSError(28, "No space left on device")
        return plain(stepper, *arguments, **ranks)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "train_step", ends_at_step_three)
        assert train(spec)[0] == 74
    again = Scarce(monkeypatch, rows=2)
    code, events = train({**spec, "attempt": 2})
    assert code == 0, events[-1]
    assert set(again.sizes) == {2}


def test_an_evaluation_that_does_not_fit_is_halved_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, whole = train(spec_of(tmp_path))
    assert code == 0
    plain = Stepper.logits

    def logits(stepper: Stepper, batch: Any) -> Any:
        if len(batch.rows) > 4 and not torch.is_grad_enabled():
            raise MemoryError
        return plain(stepper, batch)

    monkeypatch.setattr(Stepper, "logits", logits)
    code, events = train(spec_of(tmp_path, "scarce"), verify=lambda *_: 0.0)
    assert code == 0, events[-1]
    [before], [after] = (of_type(one, "evaluation") for one in (whole, events))
    assert after["valid_loss"] == pytest.approx(before["valid_loss"], rel=1e-5)


def test_half_of_what_did_not_fit_is_tried_where_tokens_had_cut_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collate, "TOKENS_AT_ONCE", 400)
    scarce = Scarce(monkeypatch, rows=1)
    code, events = train(spec_of(tmp_path, hyperparameters__per_device_train_batch_size=40))
    assert code == 0, events[-1]
    told = [event["data"]["rows_per_batch"] for event in of_type(events, "log") if event["level"] == "warn"]
    # No 40 rows were ever together: half of those would have been the same batches again.
    assert max(scarce.sizes) < 10
    assert told[0] < 10
    assert told[-1] == 1


def test_one_row_that_does_not_fit_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scarce(monkeypatch, rows=0)
    code, events = train(spec_of(tmp_path))
    assert (code, events[-1]["code"]) == (1, "out_of_memory")
    assert [
        event["data"]["rows_per_batch"] for event in of_type(events, "log") if event["level"] == "warn"
    ] == [4, 2, 1]


def test_a_process_with_too_little_memory_trains_on_with_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing: an address space that 128 rows do not fit into."""
    monkeypatch.setattr(collate, "TOKENS_AT_ONCE", 256 * 128)
    make_decoder(tmp_path / "model", "gpt2")
    long = {"role": "user", "content": "the quick brown fox jumps over the lazy dog " * 8}
    answer = {"role": "assistant", "content": "with care"}
    rows = write_rows(tmp_path / "rows.jsonl", [{"messages": [long, answer]}] * 256)
    spec = make_spec(
        tmp_path / "model",
        rows,
        tmp_path / "out",
        method="full",
        hyperparameters__per_device_train_batch_size=256,
        hyperparameters__gradient_accumulation_steps=1,
    )
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + 160 * 2**20
    process = Forked(spec, before=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    code = process.wait()
    events = events_of(spec)
    assert code == 0, (events[-1], rss_bytes())
    warned = [event for event in of_type(events, "log") if event["level"] == "warn"]
    assert [event["data"]["rows_per_batch"] for event in warned][:1] == [128]
    assert len(losses(events)) == 2


def test_nan_stops_the_run_at_that_step_and_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, runtime__checkpoint_steps=2)
    plain = Stepper.train_step

    def breaks_at_step_four(stepper: Stepper, *arguments: Any, **ranks: Any) -> Any:
        result = plain(stepper, *arguments, **ranks)
        return (math.nan, *result[1:]) if len(losses(events_of(spec))) == 3 else result

    monkeypatch.setattr(Stepper, "train_step", breaks_at_step_four)
    code, events = train(spec)
    assert code == 1
    assert events[-1]["code"] == "training_diverged"
    assert "loss is nan and the gradient norm " in events[-1]["message"]
    assert (
        "at step 4 with learning_rate 0.01. The last good checkpoint is that of step 2."
        in events[-1]["message"]
    )
    assert "lower learning_rate, such as 0.0033" in events[-1]["hint"]
    assert "Checkpoint 2 can be used" in events[-1]["hint"]
    assert len(losses(events)) == 3
    kept = read_tensors(tmp_path / "out" / "checkpoints" / "2" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_model_that_is_broken_from_the_start_is_told_so(tmp_path: Path) -> None:
    model = make_decoder(tmp_path / "model")
    weights = read_tensors(model / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = math.inf
    write_tensors(model / "model.safetensors", weights)
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(20))
    code, events = train(make_spec(model, rows, tmp_path / "out"))
    assert (code, events[-1]["code"]) == (1, "training_diverged")
    assert (
        "at step 1 with learning_rate 0.01. No checkpoint had been written before." in events[-1]["message"]
    )
    assert "if the first step fails already" in events[-1]["hint"]


def test_a_loss_that_only_rises_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser climbs instead of going down; no number ever becomes infinite."""
    monkeypatch.setattr(training_loop, "set_rate", lambda optimiser, rate: set_rate(optimiser, -rate))
    spec = spec_of(
        tmp_path, method="full", hyperparameters__num_train_epochs=20, hyperparameters__eval_steps=5
    )
    code, events = train(spec)
    assert (code, events[-1]["code"]) == (1, "training_diverged"), events[-1]
    assert "The loss has risen to" in events[-1]["message"]
    best = [event["step"] for event in of_type(events, "evaluation") if event["best"]][-1]
    assert f"The last good checkpoint is that of step {best}." in events[-1]["message"]
    assert (tmp_path / "out" / "checkpoints" / str(best) / "manifest.json").is_file()


def test_noise_and_slow_starts_are_no_divergence() -> None:
    trend = LossTrend()
    for step in range(500):
        loss = 2.0 + math.sin(step) + (30.0 if step % 40 == 39 else 0.0)
        trend = trend.after(loss)
        assert divergence(step, loss=loss, grad_norm=1.0, trend=trend) is None
    for _ in range(60):
        trend = trend.after(20.0)
    assert trend.diverged
