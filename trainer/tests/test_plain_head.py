"""The loss right behind the head of models whose layers are their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_step import CPU, gradients, prepared

from fettle_trainer import models
from fettle_trainer.data import TokenRows
from fettle_trainer.device import Compute
from fettle_trainer.kernels.plain_head import logits_are_the_heads
from fettle_trainer.models import Loaded
from fettle_trainer.step import Stepper

OWN = ["gpt2", "gemma3", "t5"]
MICRO = [[0, 1, 2], [3, 4], [5]]


@pytest.fixture(autouse=True)
def many_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few they are."""
    monkeypatch.setattr(models, "_MOST_LOGITS", 0)


def own(folder: Path, kind: str, method: str = "full") -> tuple[Loaded, TokenRows, Stepper]:
    return prepared(folder, kind, method, runtime__layers="plain")


def without(stepper: Stepper) -> Stepper:
    stepper._plain = False
    return stepper


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradients_are_those_of_all_logits_at_once(tmp_path: Path, kind: str, method: str) -> None:
    loaded, rows, stepper = own(tmp_path, kind, method)
    assert loaded.kernels is None
    found = gradients(stepper, rows, MICRO)
    assert stepper._head is not None
    again = gradients(stepper, rows, MICRO)
    _, _, plain = own(tmp_path, kind, method)
    expected = gradients(without(plain), rows, MICRO)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
        # The step after begins anew, also where a head and an embedding share a weight.
        assert torch.equal(again[name], found[name])


@pytest.mark.parametrize("kind", OWN)
def test_losses_of_a_run_are_the_same(tmp_path: Path, kind: str) -> None:
    losses: list[list[float]] = []
    for change in (lambda stepper: stepper, without):
        loaded, rows, stepper = own(tmp_path, kind)
        change(stepper)
        optimiser = torch.optim.AdamW(loaded.trainable().values(), lr=1e-2)
        losses.append([])
        for _ in range(4):
            optimiser.zero_grad(set_to_none=True)
            losses[-1].append(stepper.train_step(rows, MICRO, lambda _: None)[0])
            optimiser.step()  # type: ignore[no-untyped-call]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_in_16_bits_too(tmp_path: Path) -> None:
    short = Compute(torch.device("cpu"), torch.bfloat16, "test")
    for method in ("full", "lora"):
        _, rows, stepper = prepared(tmp_path, "gpt2", method, compute=short)
        found = gradients(stepper, rows, MICRO)
        _, _, exact = prepared(tmp_path, "gpt2", method, compute=CPU)
        for name, expected in gradients(exact, rows, MICRO).items():
            assert float((found[name] - expected).norm()) <= 0.05 * float(expected.norm()) + 1e-4


@pytest.mark.parametrize(
    "more",
    [lambda x: 30 * torch.tanh(x / 30), lambda x: x / 2, lambda x: x + 1e-2],
    ids=["cap", "scale", "bias"],
)
def test_what_does_more_to_logits_keeps_its_own_way(tmp_path: Path, more: Any) -> None:
    loaded, _, _ = prepared(tmp_path, "gpt2")
    model = loaded.model
    own = model.forward

    def forward(*given: Any, **named: Any) -> Any:
        output = own(*given, **named)
        output.logits = more(output.logits)
        return output

    assert logits_are_the_heads(model, "decoder")
    model.forward = forward
    assert not logits_are_the_heads(model, "decoder")


@pytest.mark.parametrize("kind", ["bert", "bart"])
def test_there_is_none_for_classes_or_where_a_bias_is_added_behind(tmp_path: Path, kind: str) -> None:
    loaded, rows, stepper = prepared(tmp_path, kind)
    assert not loaded.plain_head
    gradients(stepper, rows, MICRO)
    assert stepper._head is None


@pytest.mark.parametrize("kind", OWN)
def test_a_step_of_few_and_many_logits_is_of_one_kind(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last micro-batch alone has many: what the others gave the head's weight stays."""
    loaded, rows, stepper = own(tmp_path, kind)
    micro = [[5], [3], [0, 1, 2, 4]]
    learnt = [len(stepper.collate(rows, chosen).gather_N) for chosen in micro]
    assert max(learnt[:2]) < learnt[2]
    size = 4 * len(loaded.model.get_output_embeddings().weight)
    monkeypatch.setattr(models, "_MOST_LOGITS", size * (learnt[2] - 1))
    assert [loaded.in_pieces(one) for one in learnt] == [False, False, True]
    found = gradients(stepper, rows, micro)
    _, _, plain = own(tmp_path, kind)
    for name, expected in gradients(without(plain), rows, micro).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)
    fused, _, _ = prepared(tmp_path, "qwen3")
    assert fused.in_pieces(1)
