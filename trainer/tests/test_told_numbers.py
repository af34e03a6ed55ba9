"""What a run tells of itself is what it says: losses in fp32, tokens a second without padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_step import prepared
from tiny import LABELS, class_rows, make_encoder, make_spec, write_rows
from torch import Tensor
from torch.nn import functional
from training import of_type, train

import fettle_trainer.models
from fettle_trainer import train as training_loop
from fettle_trainer.device import Compute
from fettle_trainer.step import Stepper

HALF = Compute(torch.device("cpu"), torch.bfloat16, "test")


def is_bfloat16(value: float) -> bool:
    """Whether nothing would be lost by telling it with eight bits."""
    return float(torch.tensor(value, dtype=torch.float64).bfloat16()) == value


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "qwen2", "t5"])
def test_a_model_in_bf16_tells_its_loss_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Summed and divided in fp32, from whatever logits the model gives."""
    loaded, rows, stepper = prepared(tmp_path, kind, compute=HALF)
    window = list(range(len(rows)))
    batch = stepper.collate(rows, window)
    with torch.no_grad():
        loaded.model.eval()
        logits = stepper.logits(batch)
        assert logits.dtype == torch.bfloat16
        exact = float(functional.cross_entropy(logits.double(), batch.targets_N))
        # What it would be in bf16 shows in the third digit.
        rough = float(functional.cross_entropy(logits, batch.targets_N))
    assert abs(rough - exact) > 1e-4 * exact
    assert stepper.evaluate(rows, len(rows), lambda _: None).loss == pytest.approx(exact, rel=2e-6)
    totals: list[Tensor] = []
    plain = Stepper.loss

    def watched(own: Stepper, *given: Any) -> Any:
        found = plain(own, *given)
        totals.append(found.total.detach())
        return found

    monkeypatch.setattr(Stepper, "loss", watched)
    told, _, _ = stepper.train_step(rows, [window[:5], window[5:]], lambda _: None)
    assert [total.dtype for total in totals] == [torch.float32] * 2
    num_losses = batch.targets_N.numel()
    assert told == pytest.approx(float(torch.stack(totals).double().sum()) / num_losses, rel=1e-6)
    # The kernels make other logits by rounding elsewhere.
    assert told == pytest.approx(exact, rel=5e-3)


def test_a_run_in_bf16_tells_losses_of_more_than_eight_bits(tmp_path: Path) -> None:
    model = make_encoder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", class_rows(40))
    held = write_rows(tmp_path / "held.jsonl", class_rows(12, seed=1))
    code, events = train(
        make_spec(
            model,
            rows,
            tmp_path / "out",
            task="classification",
            base_model__family="encoder",
            data__labels=LABELS,
            data__validation_path=str(held),
            runtime__dtype="bfloat16",
        )
    )
    assert code == 0, events[-1]
    losses = [event["train_loss"] for event in of_type(events, "step")]
    losses += [event["valid_loss"] for event in of_type(events, "evaluation")]
    assert len(losses) >= 10
    assert sum(is_bfloat16(loss) for loss in losses) <= 1


@pytest.mark.parametrize("fused", [True, False])
def test_padding_is_not_counted_as_tokens_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    """Rows of 4 to 60 tokens in one batch: most of what the plain layers compute is padding."""
    if not fused:
        monkeypatch.setattr(fettle_trainer.models, "enable_kernels", lambda *_: (None, "off, for this test"))
    seconds: list[float] = []
    plain = training_loop.tell_step

    def watched(*given: Any, **named: Any) -> None:
        seconds.append(named["seconds"])
        plain(*given, **named)

    positions: list[int] = []
    whole_step = Stepper.train_step

    def counted(stepper: Stepper, rows: Any, micro: Any, begin: Any, **named: Any) -> Any:
        def also(size: int) -> None:
            positions.append(size)
            begin(size)

        return whole_step(stepper, rows, micro, also, **named)

    monkeypatch.setattr(training_loop, "tell_step", watched)
    monkeypatch.setattr(Stepper, "train_step", counted)
    rows = [{"text": " ".join(["fox"] * (1 if row % 4 else 50)), "label": "login"} for row in range(32)]
    code, events = train(
        make_spec(
            make_encoder(tmp_path / "model"),
            write_rows(tmp_path / "rows.jsonl", rows),
            tmp_path / "out",
            task="classification",
            method="full",
            base_model__family="encoder",
            data__labels=LABELS,
            hyperparameters__per_device_train_batch_size=32,
            hyperparameters__gradient_accumulation_steps=1,
        )
    )
    assert code == 0, events[-1]
    steps, [data] = of_type(events, "step"), of_type(events, "data")
    told = [event["tokens_per_second"] * took for event, took in zip(steps, seconds, strict=True)]
    assert told == pytest.approx([data["num_train_tokens"]] * 2)
    assert [event["num_tokens"] for event in steps] == [
        data["num_train_tokens"],
        2 * data["num_train_tokens"],
    ]
    assert min(positions) > 2 * data["num_train_tokens"]
