"""Loss and gradients against PyTorch's own."""

import pytest
import torch
from torch.nn import functional

from fettle_trainer.loss import summed_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_value_and_gradient_are_those_of_the_reference(smoothing: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=dtype)
    weight = torch.randn(11, 5, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 11, (7,))
    reference = functional.cross_entropy(
        (hidden @ weight.t()).float(), targets, reduction="sum", label_smoothing=smoothing
    )
    (expected,) = torch.autograd.grad(reference / 3, weight)
    loss = summed_cross_entropy(hidden @ weight.t(), targets, smoothing)
    (actual,) = torch.autograd.grad(loss.total / 3, weight)
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total, reference, rtol=1e-5, atol=1e-5)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = summed_cross_entropy(logits * 1.0, torch.tensor([1]))
    assert loss.total.item() == pytest.approx(2e4)


def test_accuracy_is_counted() -> None:
    logits = torch.eye(4)
    assert summed_cross_entropy(logits, torch.tensor([0, 1, 0, 3])).num_correct == 3
    assert summed_cross_entropy(logits.requires_grad_() * 1, torch.tensor([0, 1, 0, 3])).num_correct == 3


def test_no_position_gives_a_zero_with_a_gradient() -> None:
    logits = torch.randn(0, 4, requires_grad=True)
    loss = summed_cross_entropy(logits * 1.0, torch.zeros(0, dtype=torch.long))
    loss.total.backward()
    assert loss.total.item() == 0.0
