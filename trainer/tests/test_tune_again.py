"""A run that begins with a tuned model begins with what that model had learnt."""

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
from torch import Tensor
from training import train

from fettle_trainer.adapter_kinds import read_adapter
from fettle_trainer.artefact import load_artefact
from fettle_trainer.data import Tokeniser, load_dataset
from fettle_trainer.spec import Task
from fettle_trainer.step import Stepper

KINDS: dict[str, tuple[Any, Any, Task, str]] = {
    "llama": (make_decoder, chat_rows, "chat", "decoder"),
    "bert": (make_encoder, class_rows, "classification", "encoder"),
    "t5": (make_seq2seq, pair_rows, "seq2seq", "seq2seq"),
}
# So small that nothing is learnt: what comes out is what the run began with.
STILL = {"hyperparameters__learning_rate": 1e-12, "hyperparameters__weight_decay": 0.0}


def spec_of(folder: Path, kind: str, name: str, **changes: Any) -> dict[str, Any]:
    make, make_rows, task, family = KINDS[kind]
    model = folder / kind
    if not model.exists():
        make(model, kind)
    rows = write_rows(folder / f"{kind}.jsonl", make_rows(16, seed=1))
    labels = {"data__labels": LABELS} if task == "classification" else {}
    settings: dict[str, Any] = {
        "task": task, "base_model__family": family, "hyperparameters__dropout": 0.0, **labels, **changes,
    }  # fmt: skip
    return make_spec(model, rows, folder / name, **settings)


def answers(folder: Path, kind: str, name: str, base: Path) -> Tensor:
    """Of the artefact of run `name`, to the rows it was trained on."""
    loaded = load_artefact(folder / name / "artefact", base, torch.float32)
    task = KINDS[kind][2]
    labels = tuple(LABELS) if task == "classification" else None
    tokeniser = Tokeniser(loaded.prompts, task, loaded.max_length, labels)
    rows = load_dataset(folder / f"{kind}.jsonl", tokeniser, cache=folder / "c", tokenizer_sha256=kind).rows
    return Stepper(loaded, task).answers(rows, range(4))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("methods", [("lora", "lora"), ("lora", "full"), ("full", "lora")])
def test_the_next_run_begins_where_the_last_ended(
    tmp_path: Path, kind: str, methods: tuple[str, str]
) -> None:
    first, second = methods
    code, events = train(spec_of(tmp_path, kind, "first", method=first))
    assert code == 0, events[-1]
    made = tmp_path / "first" / "artefact"
    start = {"base_model__adapter_path": str(made)} if first == "lora" else {"base_model__path": str(made)}
    code, events = train(spec_of(tmp_path, kind, "second", method=second, **start, **STILL))
    assert code == 0, events[-1]
    before = answers(tmp_path, kind, "first", tmp_path / kind)
    after = answers(tmp_path, kind, "second", tmp_path / kind if first == "lora" else made)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert (tmp_path / "second" / "artefact" / "adapter_config.json").exists() == (second == "lora")


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("method", ["dora", "ia3"])
def test_adapters_that_rescale_are_folded_into_the_weights(tmp_path: Path, kind: str, method: str) -> None:
    rate = {"hyperparameters__learning_rate": 0.03}
    code, events = train(spec_of(tmp_path, kind, "first", method=method, **rate))
    assert code == 0, events[-1]
    made = tmp_path / "first" / "artefact"
    _, tensors = read_adapter(made)
    scales = {name: one for name, one in tensors.items() if "ia3_l" in name or "magnitude" in name}
    assert scales
    if method == "ia3":
        assert all((one - 1).abs().max() > 1e-2 for one in scales.values())
    start = {"base_model__adapter_path": str(made)}
    code, events = train(spec_of(tmp_path, kind, "second", method="full", **start, **STILL))
    assert code == 0, events[-1]
    assert not (tmp_path / "second" / "artefact" / "adapter_config.json").exists()
    before = answers(tmp_path, kind, "first", tmp_path / kind)
    after = answers(tmp_path, kind, "second", tmp_path / kind)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_a_new_head_is_put_on_a_model_that_wrote_text(tmp_path: Path) -> None:
    assert train(spec_of(tmp_path, "llama", "first"))[0] == 0
    rows = write_rows(tmp_path / "classes.jsonl", class_rows(16, seed=1))
    spec = make_spec(
        tmp_path / "llama", rows, tmp_path / "second",
        task="classification", method="head", data__labels=LABELS,
        base_model__adapter_path=str(tmp_path / "first" / "artefact"),
    )  # fmt: skip
    code, events = train(spec)
    assert code == 0, events[-1]
    first = load_artefact(tmp_path / "first" / "artefact", tmp_path / "llama", torch.float32)
    second = load_artefact(tmp_path / "second" / "artefact", tmp_path / "llama", torch.float32)
    ids = torch.arange(8)[None]
    trunk = [one.model.base_model(input_ids=ids).last_hidden_state for one in (first, second)]
    torch.testing.assert_close(trunk[1], trunk[0], rtol=1e-3, atol=1e-3)
