"""Preference tuning: the loss is the paper's, whatever lays out the rows, and it starts from nothing."""

import hashlib
import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny import make_decoder, make_spec, preference_rows, write_rows
from torch import Tensor
from torch.nn import functional
from training import Forked, events_of, of_type, train

from fettle_trainer.data import Tokeniser, TokenRows, load_dataset
from fettle_trainer.device import Compute
from fettle_trainer.messages import PromptError
from fettle_trainer.models import Loaded, load_for_training
from fettle_trainer.spec import parse_spec
from fettle_trainer.step import Stepper
from fettle_trainer.tasks.preference import Preference

CPU = Compute(torch.device("cpu"), torch.float32, "test")
BETA = 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preference")


def spec_of(folder: Path, kind: str = "llama", **changes: Any) -> dict[str, Any]:
    model = folder / kind
    if not model.exists():
        make_decoder(model, kind)
    rows = write_rows(folder / "rows.jsonl", preference_rows(12, seed=1))
    held = write_rows(folder / "held.jsonl", preference_rows(5, seed=2))
    settings = {"data__validation_path": str(held), "hyperparameters__beta": BETA, **changes}
    return make_spec(model, rows, folder / "out", task="preference", hyperparameters__dropout=0.0, **settings)


def prepared(folder: Path, kind: str, method: str) -> tuple[Loaded, TokenRows, Stepper]:
    spec = parse_spec(spec_of(folder, kind, method=method))
    loaded = load_for_training(spec, CPU)
    loaded.set_training()
    tokeniser = Tokeniser(loaded.prompts, spec.task, loaded.max_length)
    path = Path(spec.data.train_path)
    rows = load_dataset(path, tokeniser, cache=folder / "cache", tokenizer_sha256=kind).rows
    stepper = Stepper(loaded, spec.task, objective=Preference(BETA))
    return loaded, replace(rows, reference=stepper.references(rows, 4, lambda _: None)), stepper


def by_hand(model: Any, rows: TokenRows, row: int) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of both answers, from whole logits of one sequence at a time."""
    ids, learn, end = rows.ids_of(row), rows.aux_of(row).bool(), int(rows.labels[row])
    sums: list[Tensor] = []
    for part, learnt in ((ids[:end], learn[:end]), (ids[end:], learn[end:])):
        logits = cast("Tensor", model(input_ids=part[None]).logits)[0, :-1].float()
        each = logits.log_softmax(dim=-1).gather(1, part[1:, None])[:, 0]
        sums.append(each[learnt[1:]].sum())
    return sums[0], sums[1]


def disturb(loaded: Loaded) -> None:
    """As if a few steps had been made: adapters begin with zeros, and a margin of zero hides much."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loaded.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def gradients(
    stepper: Stepper, rows: TokenRows, micro: Sequence[Sequence[int]]
) -> tuple[float, dict[str, Tensor]]:
    stepper.loaded.model.zero_grad(set_to_none=True)
    loss, _, _ = stepper.train_step(rows, micro, lambda _: None)
    named = stepper.loaded.trainable().items()
    return loss, {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize(("kind", "method"), [("llama", "lora"), ("llama", "full"), ("gpt2", "full")])
def test_loss_and_gradients_are_those_written_by_hand(folder: Path, kind: str, method: str) -> None:
    loaded, rows, stepper = prepared(folder, kind, method)
    disturb(loaded)
    chosen = [0, 3, 1, 5]
    loss, found = gradients(stepper, rows, [chosen])
    if loaded.kernels is not None:
        loaded.kernels.disable()
    loaded.model.set_attn_implementation("sdpa")
    loaded.model.zero_grad(set_to_none=True)
    expected = torch.zeros(())
    for row in chosen:
        preferred, other = by_hand(loaded.model, rows, row)
        first, second = cast("Tensor", rows.reference)[row]
        expected = expected - functional.logsigmoid(BETA * ((preferred - first) - (other - second)))
    expected = expected / len(chosen)
    cast("Any", expected).backward()
    assert loss == pytest.approx(float(expected), abs=1e-5)
    assert abs(loss - 0.6931) > 1e-3
    for name, parameter in loaded.trainable().items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_gradients_do_not_depend_on_how_a_step_is_cut(folder: Path) -> None:
    loaded, rows, stepper = prepared(folder, "llama", "full")
    disturb(loaded)
    window = list(range(8))
    whole, expected = gradients(stepper, rows, [window])
    for size in (4, 2, 1):
        loss, found = gradients(stepper, rows, [window[at : at + size] for at in range(0, 8, size)])
        assert loss == pytest.approx(whole, abs=1e-5)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_begins_with_a_margin_of_zero(folder: Path, method: str) -> None:
    _, rows, stepper = prepared(folder, "llama", method)
    before = stepper.evaluate(rows, 4, lambda _: None)
    assert before.metrics["reward_margin"] == 0.0
    assert before.loss == pytest.approx(0.693147, abs=1e-6)


def test_a_run_learns_the_preference_and_tells_its_rewards(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, hyperparameters__num_train_epochs=6)
    spec["output_dir"] = str(tmp_path / "run")
    code, events = train(spec)
    assert code == 0, events[-1]
    [first, *_] = of_type(events, "step")
    assert first["train_loss"] == pytest.approx(0.693147, abs=1e-5)
    last = of_type(events, "evaluation")[-1]
    assert last["valid_loss"] < 0.5
    metrics = last["metrics"]
    assert metrics["reward_accuracy"] == 1.0
    assert metrics["reward_margin"] == pytest.approx(
        metrics["reward_preferred"] - metrics["reward_non_preferred"]
    )
    assert last["valid_mean_token_accuracy"] == 1.0
    assert json.loads((tmp_path / "run" / "artefact" / "fettle.json").read_text())["task"] == "preference"


def test_on_top_of_an_adapter_the_reference_is_the_adapter(folder: Path, tmp_path: Path) -> None:
    """Failure of others: the base model as reference, so the first margin is what the adapter had learnt."""
    first = spec_of(folder, output_dir=str(tmp_path / "first"))
    assert train(first)[0] == 0
    again = spec_of(
        folder,
        output_dir=str(tmp_path / "again"),
        base_model__adapter_path=str(tmp_path / "first" / "artefact"),
    )
    code, events = train(again)
    assert code == 0
    [step, *_] = of_type(events, "step")
    assert step["train_loss"] == pytest.approx(0.693147, abs=1e-5)


def test_a_killed_run_ends_with_the_same_bits_and_asks_the_starting_model_once(
    folder: Path, tmp_path: Path
) -> None:
    spec = spec_of(folder, runtime__checkpoint_steps=1, hyperparameters__num_train_epochs=4)
    whole, killed = ({**spec, "output_dir": str(tmp_path / name)} for name in ("whole", "killed"))
    assert train(whole)[0] == 0
    child = Forked(killed)
    assert child.wait_until(lambda: len(of_type(events_of(killed), "checkpoint")) >= 3) is None
    child.kill(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    reference = tmp_path / "killed" / "cache" / "reference-train.safetensors"
    before = reference.stat().st_mtime_ns
    assert train(killed)[0] == 0
    assert reference.stat().st_mtime_ns == before
    adapters = [
        hashlib.sha256((tmp_path / name / "artefact" / "adapter_model.safetensors").read_bytes()).hexdigest()
        for name in ("whole", "killed")
    ]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"messages": [{"role": "user", "content": "fox"}]}, "row_kind"),
        (
            {
                "messages": [{"role": "user", "content": "fox"}],
                "preferred": [{"role": "assistant", "content": "dog"}],
                "non_preferred": [{"role": "assistant", "content": "dog"}],
            },
            "same_answers",
        ),
        (
            {
                "messages": [{"role": "user", "content": "fox " * 100}],
                "preferred": [{"role": "assistant", "content": "dog"}],
                "non_preferred": [{"role": "assistant", "content": "cat"}],
            },
            "too_long",
        ),
    ],
)
def test_rows_that_cannot_be_used_say_why(folder: Path, row: dict[str, Any], rule: str) -> None:
    loaded, _, _ = prepared(folder, "llama", "lora")
    with pytest.raises(PromptError) as refusal:
        Tokeniser(loaded.prompts, "preference", 64).encode(row)
    assert refusal.value.rule == rule
