"""What a GPU's attention is fed, tried with plain attention in its place: there may be no GPU here."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fettle_trainer.kernels.attention import attend
from fettle_trainer.kernels.heads import Heads
from fettle_trainer.kernels.layout import Layout
from fettle_trainer.kernels.varlen import Starts, attend_varlen


def plain(query: Tensor, key: Tensor, value: Tensor, *where: object, **options: object) -> Tensor:
    """The face of PyTorch 2.11's varlen_attn: as many key heads as query heads."""
    starts, _, longest, _ = where
    assert isinstance(starts, Tensor)
    assert starts.dtype == torch.int32
    assert longest == int(starts.diff().max())
    left, right = options["window_size"]  # type: ignore[misc]
    assert right == 0
    done: list[Tensor] = []
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        place = torch.arange(last - first, device=query.device)
        distance = place[:, None] - place[None]
        seen = (distance >= 0) & ((distance <= left) if left >= 0 else True)
        parts = [part[first:last].transpose(0, 1) for part in (query, key, value)]
        out = functional.scaled_dot_product_attention(*parts, seen, scale=options["scale"])  # type: ignore[arg-type]
        done.append(out.transpose(0, 1))
    return torch.cat(done)


@pytest.mark.parametrize("keys", [2, 4])
@pytest.mark.parametrize("window", [0, 3])
def test_rows_on_a_gpu_are_those_on_a_cpu(keys: int, window: int) -> None:
    torch.manual_seed(0)
    lengths = (5, 1, 9)
    heads = Heads(query=4, key=keys, width=8, causal=True, scale=0.4, window=window)
    angles = torch.randn(15, 4)
    angles = torch.cat([angles, angles], dim=-1)
    turn = angles.cos(), angles.sin()
    found: list[tuple[Tensor, Tensor]] = []
    for on_gpu in (True, False):
        torch.manual_seed(1)
        qkv = torch.randn(15, (4 + 2 * keys) * 8, requires_grad=True)
        if on_gpu:
            out = attend_varlen(qkv, Starts(lengths, turn, torch.float32), heads, attention=plain)
        else:
            out = attend([qkv], Layout.of_self(lengths, heads).turned(*turn, torch.float32), heads)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        assert qkv.grad is not None
        found.append((out, qkv.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
