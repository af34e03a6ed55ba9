"""SwiGLU: y = silu(g) * u.      (Shazeer 2020, equation 5)

Keeps its inputs alone; silu(g) is made again on the way back, which is cheaper than keeping it.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        return functional.silu(gate_TF).mul_(up_TF)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate_TF, up_TF = cast("tuple[Tensor, Tensor]", ctx.saved_tensors)
        (grad_TF,) = gradients
        grad_up = functional.silu(gate_TF).mul_(grad_TF)
        return torch.ops.aten.silu_backward(grad_TF * up_TF, gate_TF), grad_up


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """T x F."""
    # apply() is untyped in torch's stubs.
    return cast("Tensor", _SwiGlu.apply(gate_TF, up_TF))  # pyright: ignore[reportUnknownMemberType]
