"""A frozen base runs once: what the head learns from is what it would have learnt from otherwise."""

from pathlib import Path

import pytest
import torch
from test_step import gradients, prepared
from tiny import LABELS, class_rows, make_encoder, make_spec, write_rows
from training import of_type, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def nothing(_: int) -> None:
    pass


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_steps_and_evaluation_are_those_of_the_whole_model(folder: Path, kind: str) -> None:
    loaded, rows, stepper = prepared(folder, kind, "head")
    micro = [[0, 5, 1], [7, 3]]
    expected = gradients(stepper, rows, micro)
    evaluated = stepper.evaluate(rows, 4, nothing)
    assert stepper.remember(rows, 4, nothing) == ""
    base_ran: list[int] = []
    handle = loaded.model.base_model.get_input_embeddings().register_forward_hook(
        lambda *_: base_ran.append(1)
    )
    actual = gradients(stepper, rows, micro)
    again = stepper.evaluate(rows, 4, nothing)
    handle.remove()
    assert not base_ran
    assert actual.keys() == expected.keys() != set()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert again.loss == pytest.approx(evaluated.loss, rel=1e-5)
    assert again.metrics == pytest.approx(evaluated.metrics)


def test_a_head_that_reads_every_token_is_told_apart(folder: Path) -> None:
    """As ModernBERT's may: it takes the mean over all tokens."""
    loaded, rows, stepper = prepared(folder, "bert", "head")

    class Mean(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.mean(dim=1)

    loaded.model.bert.pooler = Mean()
    assert stepper.remember(rows, 4, nothing) == "this head reads more than one token"
    assert gradients(stepper, rows, [[0, 1]])


def test_more_than_a_head_is_refused(folder: Path) -> None:
    _, rows, stepper = prepared(folder, "bert", "full")
    assert stepper.remember(rows, 4, nothing) == "more than the head is trained"


def test_a_run_says_that_the_base_ran_once(folder: Path) -> None:
    model = make_encoder(folder / "bert-run", "bert")
    rows = write_rows(folder / "run.jsonl", class_rows(12))
    spec = make_spec(
        model, rows, folder / "run", task="classification", method="head", base_model__family="encoder",
        data__labels=LABELS, hyperparameters__num_train_epochs=2,
    )  # fmt: skip
    code, events = train(spec)
    assert code == 0
    assert any("The base has run once" in event["message"] for event in of_type(events, "log"))
