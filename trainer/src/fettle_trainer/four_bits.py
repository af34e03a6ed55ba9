"""A frozen linear layer in 4 bits: NF4, its scales quantised too (Dettmers et al. 2023, QLoRA, section 3).

    W = c[q] s      q: 4 bits a weight, c: 16 levels; s: one for 64 weights, itself in 8 bits with one in fp32
                    for 256 of them

bitsandbytes does the numbers. The weight that a product reads is made anew each time, on the way forth and on
the way back, in the type of the products: nothing keeps it.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .failure import TrainFailure

_PACKAGE = "bitsandbytes"
_SETUP = "node scripts/setup.mjs --qlora"
# Weights that share a scale.
_TOGETHER = 64


def missing_package() -> str:
    """Empty where 4 bits can be made, else what to do."""
    if importlib.util.find_spec(_PACKAGE) is not None:
        return ""
    return f"the package {_PACKAGE} is not installed, which `{_SETUP}` does"


class Linear4(nn.Module):
    """Stands in for a frozen linear layer; the whole weight is never held."""

    def __init__(self, weight_OI: Tensor, bias: nn.Parameter | None) -> None:
        """Quantised where `weight_OI` is. Raises TrainFailure without bitsandbytes."""
        super().__init__()
        self._library = _library()
        # Contiguous: what makes it smaller reads memory as it lies.
        packed, self._state = self._library.quantize_4bit(
            weight_OI.detach().contiguous(),
            blocksize=_TOGETHER,
            compress_statistics=True,
            quant_type="nf4",
        )
        self.shape = weight_OI.shape
        self.dtype = weight_OI.dtype
        self.packed = cast("Tensor", packed)
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """O x I, made anew."""
        with torch.no_grad():
            return cast("Tensor", self._library.dequantize_4bit(self.packed, self._state))

    @property
    def num_bytes(self) -> int:
        """Of bits and scales."""
        state = self._state
        parts = (self.packed, state.absmax, state.offset, state.state2.absmax)
        return sum(part.numel() * part.element_size() for part in cast("tuple[Tensor, ...]", parts))

    def forward(self, x: Tensor) -> Tensor:
        # apply() is untyped in torch's stubs.
        return cast("Any", _Product).apply(x.to(self.dtype), self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linear4":
        """To another device, with all that belongs to it."""
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        device = fn(torch.empty(0)).device
        self.packed = self.packed.to(device)
        self._state.to(device)
        return self


class _Product(torch.autograd.Function):
    """Keeps neither the input, which only a gradient of the weight would read, nor the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Linear4) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer = cast("Linear4", ctx.layer)
        return gradients[0].to(layer.dtype) @ layer.weight, None


def four_bit_layers(model: Any) -> Iterator[Linear4]:
    for module in cast("Iterator[nn.Module]", model.modules()):
        if isinstance(module, Linear4):
            yield module


def _library() -> Any:
    missing = missing_package()
    if missing:
        raise TrainFailure(
            "incompatible_method",
            f"The method 'qlora' keeps the base in 4 bits, and {missing}.",
            f"Run `{_SETUP}` in Fettle's folder, or use the method 'lora'.",
        )
    return importlib.import_module(f"{_PACKAGE}.functional")
