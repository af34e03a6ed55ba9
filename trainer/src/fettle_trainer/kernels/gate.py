"""SwiGLU: y = silu(g) * u.      (Shazeer 2020, equation 5)

What opens, silu(g), is kept for the way back where making it again is a pass of its own: that costs a
hundredth of a step.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from . import passes


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> tuple[Tensor, Tensor | None]:
    """y, and silu(g) where it is kept."""
    found = passes.between(gate_TF.dtype, gate_TF.device)
    if found is not None:
        return cast("Tensor", found.swiglu(gate_TF, up_TF)), None
    opened_TF = functional.silu(gate_TF)
    return opened_TF * up_TF, opened_TF


def swiglu_backward(
    grad_TF: Tensor, gate_TF: Tensor, *, up_TF: Tensor, opened_TF: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of g and u."""
    if opened_TF is None:
        found = passes.between(gate_TF.dtype, gate_TF.device)
        return cast("tuple[Tensor, Tensor]", found.swiglu_backward(grad_TF, gate_TF, up_TF))
    return torch.ops.aten.silu_backward(grad_TF * up_TF, gate_TF), opened_TF * grad_TF
