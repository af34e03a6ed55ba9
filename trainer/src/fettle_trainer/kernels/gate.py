"""SwiGLU: y = silu(g) * u.      (Shazeer 2020, equation 5)

What opens, silu(g), is kept for the way back: making it again costs a hundredth of a step.
"""

import torch
from torch import Tensor
from torch.nn import functional


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> tuple[Tensor, Tensor]:
    """y, and silu(g)."""
    opened_TF = functional.silu(gate_TF)
    return opened_TF * up_TF, opened_TF


def swiglu_backward(
    grad_TF: Tensor, gate_TF: Tensor, *, up_TF: Tensor, opened_TF: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of g and u."""
    return torch.ops.aten.silu_backward(grad_TF * up_TF, gate_TF), opened_TF * grad_TF
