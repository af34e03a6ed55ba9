"""Minutes of steps, for `npm run test:proofs`: does memory grow? What it measures, it prints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_step import prepared
from tiny import chat_rows, make_decoder, make_spec, write_rows
from training import Forked, events_of, of_type

from fettle_trainer.events import rss_bytes
from fettle_trainer.step import Stepper

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory where Linux tells it"),
]
STEPS = 10_000
ROWS = 400
# Bytes a step. One lost tensor of a single element takes several times that.
MOST = 100.0


def spec_of(folder: Path, output: str, steps: int) -> dict[str, Any]:
    if not (folder / "model").exists():
        make_decoder(folder / "model")
        write_rows(folder / "rows.jsonl", chat_rows(ROWS))
    return make_spec(
        folder / "model",
        folder / "rows.jsonl",
        folder / output,
        hyperparameters__per_device_train_batch_size=2,
        hyperparameters__gradient_accumulation_steps=1,
        hyperparameters__num_train_epochs=steps * 2 // ROWS,
        hyperparameters__learning_rate=1e-4,
        runtime__heartbeat_seconds=0.25,
        runtime__checkpoint_steps=1000,
    )


def slope(spec: dict[str, Any], steps: int) -> tuple[float, int]:
    """Bytes of resident memory a step, by least squares over the last 80 % of what the heartbeats tell; and
    their number."""
    beats = [beat for beat in of_type(events_of(spec), "heartbeat") if steps / 5 <= beat["step"] < steps]
    at = torch.tensor([beat["step"] for beat in beats], dtype=torch.float64)
    size = torch.tensor([beat["rss_bytes"] for beat in beats], dtype=torch.float64)
    at, size = at - at.mean(), size - size.mean()
    return float((at * size).sum() / (at * at).sum()), len(beats)


def test_memory_stays_flat_over_ten_thousand_steps(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "flat", STEPS)
    assert Forked(spec).wait(900) == 0, events_of(spec)[-1]
    assert of_type(events_of(spec), "finished")[0]["step"] == STEPS
    a_step, looks = slope(spec, STEPS)
    print(f"\n{STEPS} steps: {a_step:.1f} bytes of resident memory a step over the last 80 % ({looks} looks)")
    assert looks >= 40
    assert abs(a_step) < MOST


def test_a_tensor_lost_in_each_step_would_show(tmp_path: Path) -> None:
    steps = STEPS // 5
    lost: list[torch.Tensor] = []

    def before() -> None:
        plain = Stepper.train_step

        def loses(*given: Any, **named: Any) -> Any:
            lost.append(torch.zeros(1))
            return plain(*given, **named)

        Stepper.train_step = loses  # type: ignore[method-assign]

    spec = spec_of(tmp_path, "leak", steps)
    assert Forked(spec, before=before).wait(300) == 0, events_of(spec)[-1]
    a_step, looks = slope(spec, steps)
    print(
        f"\na tensor of one element lost in each of {steps} steps: {a_step:.1f} bytes a step ({looks} looks)"
    )
    assert a_step > 2 * MOST


def test_an_evaluation_takes_the_same_memory_however_many_rows(tmp_path: Path) -> None:
    _, rows, stepper = prepared(tmp_path, "llama")
    many = rows.select([row % len(rows) for row in range(8192)])
    looks: list[int] = []
    stepper.evaluate(many, 8, lambda _: looks.append(rss_bytes()))
    answers = sum(int(rows.aux_of(row)[1:].sum()) for row in range(len(rows))) * len(many) // len(rows)
    logits = answers * int(stepper.loaded.model.config.vocab_size) * 4
    # Longest rows first: the first batches take the most.
    grown = looks[-1] - looks[len(looks) // 10]
    print(f"\n{len(many)} rows evaluated: {grown} bytes more at the end; their logits are {logits}")
    assert logits > 50 * 2**20
    assert grown < 2 * 2**20
