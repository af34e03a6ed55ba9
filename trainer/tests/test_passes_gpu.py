"""The kernels of a GPU beside PyTorch's own operations in fp32. Triton interprets them where there is
no GPU."""

import importlib.util
from typing import Any

import pytest
import torch
from test_varlen import plain
from torch import Tensor, nn
from torch.nn import functional

from fettle_trainer.kernels import passes
from fettle_trainer.kernels.gate import swiglu, swiglu_backward
from fettle_trainer.kernels.head_loss import head_loss
from fettle_trainer.kernels.heads import Heads
from fettle_trainer.kernels.norm import Norm, add, rms_norm, rms_norm_backward, rms_norm_weight_gradient
from fettle_trainer.kernels.projection import Projection
from fettle_trainer.kernels.varlen import Starts, attend_varlen

# Triton comes with a GPU's PyTorch; `npm run test:proofs` installs it for a CPU's.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Of bf16: 8 bits.
NEAR = {"rtol": 2**-7, "atol": 2**-8}


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, wherever this is."""
    from fettle_trainer.kernels import passes_gpu

    def found(dtype: torch.dtype, _: torch.device) -> Any:
        return passes_gpu if dtype == torch.bfloat16 else None

    monkeypatch.setattr(passes, "on_gpu", found)
    monkeypatch.setattr(passes, "between", found)
    torch.manual_seed(0)


def wide(*shape: int) -> Tensor:
    return torch.randn(*shape).to(DEVICE)


def short(*shape: int) -> Tensor:
    return wide(*shape).bfloat16()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.float(), expected.float(), **NEAR)


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (130, 576)])
def test_norm_of_a_sum_and_its_way_back(shape: tuple[int, int]) -> None:
    x, added, weight = wide(*shape), short(*shape), wide(shape[1]).requires_grad_()
    total, y, inverse = rms_norm(x, weight, eps=1e-5, dtype=torch.bfloat16, added_TE=added)
    torch.testing.assert_close(total, x + added)
    torch.testing.assert_close(add(x, added), x + added)
    leaf = total.clone().requires_grad_()
    expected = functional.rms_norm(leaf, shape[1:], weight, 1e-5)
    close(y, expected)
    grad, beside = short(*shape), wide(*shape)
    expected.backward(grad.float())
    assert leaf.grad is not None
    assert weight.grad is not None
    kept = (total, inverse, weight.detach())
    torch.testing.assert_close(rms_norm_weight_gradient(grad, kept), weight.grad, rtol=1e-4, atol=1e-4)
    for more, whole in ((None, leaf.grad), (beside, leaf.grad + beside)):
        found, narrowed = rms_norm_backward(grad, kept, beside=more)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
        close(narrowed, whole)


def test_norm_alone() -> None:
    x, weight = wide(5, 48), wide(48)
    total, y, _ = rms_norm(x, weight, eps=1e-6, dtype=torch.bfloat16)
    assert total is x
    close(y, functional.rms_norm(x, (48,), weight, 1e-6))


def test_gate() -> None:
    """Over all that a gate may be, up to where e^x ends."""
    gate = torch.cat([torch.linspace(-100, 100, 2001), torch.randn(2777)]).to(DEVICE).bfloat16()
    up, grad = short(len(gate)), short(len(gate))
    y, opened = swiglu(gate, up)
    assert opened is None
    leaves = [gate.float().requires_grad_(), up.float().requires_grad_()]
    expected = functional.silu(leaves[0]) * leaves[1]
    close(y, expected)
    expected.backward(grad.float())
    for found, leaf in zip(swiglu_backward(grad, gate, up_TF=up, opened_TF=None), leaves, strict=True):
        assert leaf.grad is not None
        close(found, leaf.grad)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("keys", "width"), [(2, 8), (4, 24)])
def test_heads_are_normed_and_turned(
    normed: bool, keys: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, heads = (5, 1, 9), Heads(query=4, key=keys, width=width, causal=True, scale=0.4)
    angles = wide(15, width // 2)
    angles = torch.cat([angles, angles], dim=-1)
    found: list[list[Tensor]] = []
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(1)
        rows = Starts(lengths, (angles.cos().bfloat16(), angles.sin().bfloat16()), dtype)
        qkv = torch.randn(15, (4 + 2 * keys) * width).bfloat16().to(DEVICE, dtype).requires_grad_()
        norms = tuple(Norm(RmsNorm(width), dtype) for _ in range(2)) if normed else None
        out = attend_varlen(qkv, rows, heads, norms=norms, attention=plain)  # type: ignore[arg-type]
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)).sum().backward()
        assert qkv.grad is not None
        weights = [] if norms is None else [norm._weight.grad for norm in norms]
        found.append([out, qkv.grad, *weights])  # type: ignore[list-item]
    for one, other in zip(*found, strict=True):
        assert float((one.float() - other).norm() / other.norm()) < 0.01


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width).to(DEVICE))
        self.variance_epsilon = 1e-5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("vocabulary", [37, 20_011])
def test_loss_behind_the_head(smoothing: float, vocabulary: int) -> None:
    head = nn.Linear(16, vocabulary, bias=False).to(DEVICE)
    hidden, targets = short(9, 16), torch.randint(0, vocabulary, (9,)).to(DEVICE)
    targets[0] = (hidden[0].float() @ head.weight.bfloat16().float().t()).argmax()
    own = hidden.clone().requires_grad_()
    loss, hits = head_loss(own, targets, Projection([head], torch.bfloat16), smoothing=smoothing)
    (loss * 0.5).backward()
    leaf = hidden.float().requires_grad_()
    weight = head.weight.detach().bfloat16().float().requires_grad_()
    logits = leaf @ weight.t()
    expected = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    (expected * 0.5).backward()
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0.0)
    assert 1 <= int(hits) == int((logits.bfloat16().argmax(dim=-1) == targets).sum())
    for one, other in ((own.grad, leaf.grad), (head.weight.grad, weight.grad)):
        assert one is not None
        assert other is not None
        assert float((one.float() - other).norm() / other.norm()) < 0.01


def test_each_kernel_can_be_tried() -> None:
    from fettle_trainer.kernels import passes_gpu

    passes_gpu.try_all(DEVICE)


def test_rows_that_lie_apart() -> None:
    """Gradients of a norm do not depend on how its input lies in memory."""
    x, weight, grad = wide(48, 5).t(), wide(48), short(5, 48)
    found: list[Tensor] = []
    for one in (x, x.contiguous()):
        total, _, inverse = rms_norm(one, weight, eps=1e-5, dtype=torch.bfloat16)
        kept = (total, inverse, weight)
        found += [*rms_norm_backward(grad, kept), rms_norm_weight_gradient(grad, kept)]
    for one, other in zip(found[:3], found[3:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("place", [0, 9000])
def test_a_logit_that_is_no_number_is_no_loss(place: int) -> None:
    from fettle_trainer.kernels import passes_gpu

    logits = short(2, 9001)
    logits[1, place] = float("nan")
    loss, _ = passes_gpu.cross_entropy_(logits[:1].clone(), torch.tensor([3], device=DEVICE), 0.0)
    assert bool(loss.isfinite())
    loss, _ = passes_gpu.cross_entropy_(logits, torch.tensor([3, 4], device=DEVICE), 0.0)
    assert bool(loss.isnan())
