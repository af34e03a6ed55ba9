"""SwiGLU over gate and up side by side: y = silu(g) * u.      (Shazeer 2020, equation 5)

Keeps its input alone; silu(g) is made again on the way back, which is cheaper than keeping it.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both_TF: Tensor) -> Tensor:
        ctx.save_for_backward(both_TF)
        gate, up = both_TF.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (both_TF,) = cast("tuple[Tensor]", ctx.saved_tensors)
        gate, up = both_TF.chunk(2, dim=-1)
        grad_both = torch.empty_like(both_TF)
        grad_gate, grad_up = grad_both.chunk(2, dim=-1)
        torch.mul(gradients[0], functional.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(gradients[0] * up, gate, grad_input=grad_gate)
        return grad_both


def swiglu(both_TF: Tensor) -> Tensor:
    """T x 2F, gates first, to T x F."""
    # apply() is untyped in torch's stubs.
    return cast("Tensor", _SwiGlu.apply(both_TF))  # pyright: ignore[reportUnknownMemberType]
