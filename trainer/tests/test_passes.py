"""The compiled passes beside PyTorch's own operations in fp32, and the layers without them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fettle_trainer.kernels import passes
from fettle_trainer.kernels.attention import attend
from fettle_trainer.kernels.gate import swiglu, swiglu_backward
from fettle_trainer.kernels.heads import Heads
from fettle_trainer.kernels.layout import Layout
from fettle_trainer.kernels.norm import add, rms_norm, rms_norm_backward

# Of bf16: 8 bits, and what one more rounding in the middle may do.
NEAR = {"rtol": 2**-7, "atol": 2**-8}
WAYS = ["plain"] if passes.library() is None else ["plain", "compiled"]


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    torch.manual_seed(0)
    if request.param == "plain":
        monkeypatch.setattr(passes, "library", lambda: None)
    return str(request.param)


def short(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.float(), expected.float(), **NEAR)


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (300, 576)])
def test_norm_of_a_sum_and_its_way_back(shape: tuple[int, int]) -> None:
    x, added, weight = torch.randn(shape), short(*shape), torch.randn(shape[1])
    total, y, inverse = rms_norm(x, weight, eps=1e-5, dtype=torch.bfloat16, added_TE=added)
    torch.testing.assert_close(total, x + added)
    torch.testing.assert_close(add(x, added), x + added)
    leaf = total.clone().requires_grad_()
    expected = functional.rms_norm(leaf, shape[1:], weight, 1e-5)
    close(y, expected.detach())
    grad, beside = short(*shape), torch.randn(shape)
    expected.backward(grad.float())
    assert leaf.grad is not None
    for more, whole in ((None, leaf.grad), (beside, leaf.grad + beside)):
        found, narrowed = rms_norm_backward(grad, (total, inverse, weight), beside=more)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
        close(narrowed, whole)


def test_gate() -> None:
    """Over all that a gate may be, up to where e^x ends."""
    gate = torch.cat([torch.linspace(-100, 100, 1001), torch.randn(777)]).bfloat16()
    up, grad = short(len(gate)), short(len(gate))
    leaves = [one.float().requires_grad_() for one in (gate, up)]
    expected = functional.silu(leaves[0]) * leaves[1]
    expected.backward(grad.float())
    made, opened = swiglu(gate, up)
    close(made, expected.detach())
    for found, leaf in zip(swiglu_backward(grad, gate, up_TF=up, opened_TF=opened), leaves, strict=True):
        assert leaf.grad is not None
        close(found, leaf.grad)


def causal(heads: Heads, lengths: tuple[int, ...], qkv: Tensor, *, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Row by row in the type given, by PyTorch's own function."""
    cos, sin = turn
    width, half = heads.width, heads.width // 2
    told = qkv.view(len(qkv), -1, width)
    turned = told[:, : heads.query + heads.key]
    other = torch.cat([-turned[..., half:], turned[..., :half]], dim=-1)
    told = torch.cat(
        [turned * cos[:, None] + other * sin[:, None], told[:, heads.query + heads.key :]], dim=1
    )
    done: list[Tensor] = []
    for row in told.split(list(lengths)):
        query, key, value = (
            part.transpose(0, 1) for part in row.split([heads.query, heads.key, heads.key], dim=1)
        )
        key, value = (part.repeat_interleave(heads.group, 0) for part in (key, value))
        apart = torch.arange(len(row))[:, None] - torch.arange(len(row))[None]
        hidden = (apart < 0) | (apart >= heads.window if heads.window else apart < 0)
        mask = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
        seen = functional.scaled_dot_product_attention(query, key, value, mask, scale=heads.scale)
        done.append(seen.transpose(0, 1).reshape(len(row), -1))
    return torch.cat(done)


@pytest.mark.parametrize("window", [0, 7, 200])
def test_attention(window: int) -> None:
    lengths = (3, 1, 41, 44, 333)
    heads = Heads(query=6, key=2, width=16, causal=True, scale=0.25, window=window)
    angles = torch.cat([torch.arange(length) for length in lengths])[:, None] * torch.rand(8)
    turn = (torch.cat([angles.cos()] * 2, dim=-1), torch.cat([angles.sin()] * 2, dim=-1))
    layout = Layout.of_self(lengths, heads).turned(*turn, torch.bfloat16)
    given, grad = short(sum(lengths), 10 * 16), short(sum(lengths), 6 * 16)
    results: list[list[Tensor]] = []
    ways: list[tuple[Callable[[Tensor], Tensor], torch.dtype]] = [
        (lambda given: attend([given], layout, heads), torch.bfloat16),
        (lambda given: causal(heads, lengths, given, turn=turn), torch.float32),
    ]
    for function, dtype in ways:
        leaf = given.to(dtype, copy=True).requires_grad_()
        out = function(leaf)
        out.backward(grad.to(dtype))
        assert leaf.grad is not None
        results.append([out.detach().float(), leaf.grad.float()])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm()
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_what_is_no_number_stays_none() -> None:
    """A run that diverges must be seen to."""
    every_bit = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    for wrong in (torch.tensor(float("nan")), torch.tensor(float("inf")), *every_bit):
        x = torch.randn(4, 8)
        x[2, 3] = wrong
        _, y, _ = rms_norm(x, torch.ones(8), eps=1e-5, dtype=torch.bfloat16)
        assert y[2].isnan().any()
        assert not y[[0, 1, 3]].isnan().any()
        gate = x.bfloat16()
        assert not swiglu(gate, gate)[0][2, 3].isfinite()
        made, opened = swiglu(gate, torch.ones_like(gate))
        assert not made[2, 3].isfinite()
        assert not swiglu_backward(gate, gate, up_TF=gate, opened_TF=opened)[0][2, 3].isfinite()
        heads = Heads(query=1, key=1, width=8, causal=True, scale=1.0)
        layout = Layout.of_self((4,), heads).turned(torch.ones(4, 8), torch.zeros(4, 8), torch.bfloat16)
        qkv = torch.cat([x, torch.randn(4, 16)], dim=-1).bfloat16()
        assert attend([qkv], layout, heads)[2].isnan().all()


def test_without_a_compiler_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    passes.library.cache_clear()
    assert passes.library() is None
    passes.library.cache_clear()


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    half = 'while [ "$1" != -o ]; do shift; done; echo half > "$2"; exit 1'
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo broken && exit 0\n{half}\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:/bin:/usr/bin")
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    passes.library.cache_clear()
    assert passes.library() is None
    assert subprocess.run(["ls", tmp_path / "fettle"], capture_output=True, check=True).stdout == b""
    passes.library.cache_clear()
