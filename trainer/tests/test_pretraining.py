"""Plain texts: every token is learnt once, whatever its document is put together with."""

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny import CORPUS, make_decoder, make_spec, write_rows
from torch.nn import functional
from training import of_type, train

from fettle_trainer.data import Tokeniser, TokenRows, load_dataset
from fettle_trainer.device import Compute
from fettle_trainer.messages import PromptError
from fettle_trainer.models import Loaded, load_for_training
from fettle_trainer.spec import parse_spec
from fettle_trainer.step import Stepper

CPU = Compute(torch.device("cpu"), torch.float32, "test")
LENGTH = 32
TEXTS = ["the fox", CORPUS[0] * 3, CORPUS[3], "a dog", "care", CORPUS[1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretraining")


def spec_of(folder: Path, kind: str, **changes: Any) -> dict[str, Any]:
    model = folder / kind
    if not model.exists():
        make_decoder(model, kind)
    rows = write_rows(folder / "rows.jsonl", [{"text": text} for text in TEXTS])
    settings = {"hyperparameters__max_length": LENGTH, "output_dir": str(folder / "out"), **changes}
    return make_spec(
        model, rows, folder / "out", task="pretraining", hyperparameters__dropout=0.0, **settings
    )


def prepared(folder: Path, kind: str = "llama") -> tuple[Loaded, TokenRows, Stepper]:
    spec = parse_spec(spec_of(folder, kind))
    loaded = load_for_training(spec, CPU)
    loaded.set_training()
    tokeniser = Tokeniser(loaded.prompts, spec.task, loaded.max_length)
    path = Path(spec.data.train_path)
    rows = load_dataset(path, tokeniser, cache=folder / "cache", tokenizer_sha256=kind).rows
    return loaded, rows, Stepper(loaded, spec.task)


def documents(loaded: Loaded) -> list[list[int]]:
    """As the tokenizer of the test has it: no BOS of its own, so EOS (3) before and after."""
    return [[3, *loaded.prompts.raw(text, add_special_tokens=False)["input_ids"], 3] for text in TEXTS]


def test_every_token_is_learnt_once_and_rows_are_full(folder: Path) -> None:
    loaded, rows, stepper = prepared(folder)
    batch = stepper.collate(rows, range(len(rows)))
    whole = documents(loaded)
    assert batch.targets_N.tolist() == [token for ids in whole for token in ids[1:]]
    assert rows.num_label_tokens("pretraining") == sum(len(ids) - 1 for ids in whole)
    assert len(rows) < len(TEXTS) + sum(len(ids) // LENGTH for ids in whole)
    assert max(rows.lengths) <= LENGTH
    assert rows.lines.tolist() == sorted(rows.lines.tolist())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_is_that_of_each_window_alone(folder: Path, kind: str) -> None:
    """No window sees another, neither in a row nor in a batch."""
    loaded, rows, stepper = prepared(folder, kind)
    chosen = list(range(len(rows)))
    loss, _, _ = stepper.train_step(rows, [chosen[:2], chosen[2:]], lambda _: None)
    if loaded.kernels is not None:
        loaded.kernels.disable()
    loaded.model.set_attn_implementation("sdpa")
    total, count = 0.0, 0
    for ids in documents(loaded):
        for start in range(0, len(ids) - 1, LENGTH - 1):
            window = torch.tensor(ids[start : start + LENGTH])
            with torch.no_grad():
                logits = cast("torch.Tensor", loaded.model(input_ids=window[None]).logits)[0, :-1]
            total += float(functional.cross_entropy(logits, window[1:], reduction="sum"))
            count += len(window) - 1
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_a_run_learns_its_texts(folder: Path, tmp_path: Path) -> None:
    held = write_rows(folder / "held.jsonl", [{"text": text} for text in TEXTS[:3]])
    spec = spec_of(
        folder, "llama", output_dir=str(tmp_path / "run"), method="full", data__validation_path=str(held),
        hyperparameters__num_train_epochs=30,
    )  # fmt: skip
    code, events = train(spec)
    assert code == 0, events[-1]
    first, last = of_type(events, "evaluation")[0], of_type(events, "evaluation")[-1]
    assert last["valid_loss"] < 0.5 * first["valid_loss"]
    assert last["metrics"]["perplexity"] == pytest.approx(math.exp(last["valid_loss"]))
    assert of_type(events, "data")[0]["num_refused"] == 0


def test_an_empty_text_is_refused(folder: Path) -> None:
    loaded, _, _ = prepared(folder)
    with pytest.raises(PromptError, match="nothing to learn") as refusal:
        Tokeniser(loaded.prompts, "pretraining", LENGTH).encode({"text": " \n"})
    assert refusal.value.rule == "no_text"
