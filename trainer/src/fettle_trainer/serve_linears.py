"""Linear layers of a served model in oneDNN's blocked layout: on a CPU, few rows run up to twice as fast.

A token step multiplies a handful of rows with every weight; the plain layout is made for many rows. Figures:
docs/performance.md.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# The layout is the same for any number of rows from here on.
_ROWS_HINT = 16


class BlockedLinear(nn.Linear):
    """For inference. `weight` keeps its shape and type; only its layout in memory is oneDNN's."""

    def __init__(self, plain: nn.Linear, blocked_OI: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_buffer("weight", blocked_OI)
        self.bias = plain.bias
        self.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        return _operators()._linear_pointwise(input.contiguous(), self.weight, self.bias, "none", [], "")


def block_linears(model: nn.Module) -> int:
    """Replaces the linear layers of an fp32 model on a CPU, one at a time: memory grows by one layer, and by
    an output head that shares its weight with the embedding. How many; 0 where it does not work."""
    if not torch.backends.mkldnn.is_available():
        return 0
    count = 0
    named = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    for name, module in list(named):
        if type(module) is not nn.Linear or name == "" or module.weight.device.type != "cpu":
            continue
        if module.weight.dtype != torch.float32:
            continue
        layer = _blocked(module)
        if layer is None:
            return count
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)
        count += 1
    return count


def _blocked(plain: nn.Linear) -> BlockedLinear | None:
    """None when this build of PyTorch lacks the operators, or gives other numbers."""
    try:
        layer = BlockedLinear(plain, _operators()._reorder_linear_weight(plain.weight.detach(), _ROWS_HINT))
        probe = torch.linspace(-1, 1, plain.in_features)[None]
        expected = functional.linear(probe, plain.weight, plain.bias).detach()
        scale = max(1.0, float(expected.abs().max()))
        same = bool((layer(probe).detach() - expected).abs().max() <= 1e-4 * scale)
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return layer if same else None


def _operators() -> Any:
    return cast(Any, torch.ops).mkldnn
