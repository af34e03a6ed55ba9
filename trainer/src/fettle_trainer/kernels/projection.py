"""Linear layers that read one input, as one matrix product: query, key and value; gate and up.

    y = x W^T + b + (x A^T) (s B)^T         W: layers one below the other, A: adapters likewise, B: block
    diagonal

Frozen weights are held once, in the type of the products; each layer's own weight becomes a view of them.
Trained weights stay in fp32, and a copy in the type of the products is renewed after each optimiser step.

Legend: T tokens, I inputs, O outputs of all layers together, R ranks of all adapters together.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..adapters import LoraLinear


class _Base:
    """A layer's own weight and bias, typed as what they may be."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight = layer.weight
        self.bias = cast("nn.Parameter | None", layer.bias)


class Projection:
    """`layers`: nn.Linear, or LoRA over one, all with the same input. Callable: T x I to T x O."""

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._adapters = [layer if isinstance(layer, LoraLinear) else None for layer in layers]
        self._bases = [
            _Base(cast("nn.Linear", layer.base if isinstance(layer, LoraLinear) else layer))
            for layer in layers
        ]
        self.sizes = [int(base.weight.shape[0]) for base in self._bases]
        self.trains_weight = any(base.weight.requires_grad for base in self._bases)
        self.trains_bias = any(base.bias is not None and base.bias.requires_grad for base in self._bases)
        self.scales = [0.0 if one is None else one.scale for one in self._adapters]
        self.ranks = [0 if one is None else int(one.lora_A.shape[0]) for one in self._adapters]
        self._weight, self._bias = self._joined()
        # The weight's gradient lies in one place for good: new memory each step costs more than the sums.
        self._gradient: Tensor | None = None
        self._is_fresh = True

    def __call__(self, x_TI: Tensor) -> Tensor:
        # apply() is untyped in torch's stubs.
        return cast("Tensor", _Product.apply(x_TI, self, *self.parameters()))  # pyright: ignore[reportUnknownMemberType]

    def parameters(self) -> list[Tensor | None]:
        """What may be trained: weight, bias, A and B of each layer in turn; None where there is none."""
        found: list[Tensor | None] = []
        for base, one in zip(self._bases, self._adapters, strict=True):
            found += [base.weight, base.bias, one and one.lora_A, one and one.lora_B]
        return found

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """O x I and O, in the type of the products."""
        return self._weight, self._bias

    def down_and_up(self) -> tuple[Tensor, Tensor] | None:
        """R x I and O x R, the scale included; None without adapters."""
        if not any(self.ranks):
            return None
        present = [one for one in self._adapters if one is not None]
        down = torch.cat([one.lora_A.detach() for one in present]).to(self._dtype)
        up = torch.zeros(sum(self.sizes), sum(self.ranks), dtype=self._dtype, device=down.device)
        row = column = 0
        for size, rank, one in zip(self.sizes, self.ranks, self._adapters, strict=True):
            if one is not None:
                torch.mul(one.lora_B.detach(), one.scale, out=up[row : row + size, column : column + rank])
            row, column = row + size, column + rank
        return down, up

    @torch.no_grad()
    def _joined(self) -> tuple[Tensor, Tensor | None]:
        first = self._bases[0]
        if len(self._bases) == 1 and first.weight.dtype == self._dtype:
            return first.weight.detach(), None if first.bias is None else first.bias.detach()
        weight = torch.cat([base.weight.to(self._dtype) for base in self._bases])
        bias = None
        if any(base.bias is not None for base in self._bases):
            device = first.weight.device
            none = [torch.zeros(size, dtype=self._dtype, device=device) for size in self.sizes]
            bias = torch.cat(
                [
                    zero if base.bias is None else base.bias.to(self._dtype)
                    for base, zero in zip(self._bases, none, strict=True)
                ]
            )
        if not self.trains_weight:
            for base, part in zip(self._bases, torch.split(weight, self.sizes), strict=True):
                if base.weight.dtype == self._dtype:
                    base.weight.data = part
        return weight, bias

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over what an optimiser did. Asked for, not noticed: fused AdamW does not count versions."""
        self._is_fresh = True
        if not (self.trains_weight or self.trains_bias):
            return
        bias: Sequence[Tensor | None] = [None] * len(self._bases)
        if self._bias is not None:
            bias = torch.split(self._bias, self.sizes)
        for base, part, offset in zip(self._bases, torch.split(self._weight, self.sizes), bias, strict=True):
            if part.data_ptr() != base.weight.data_ptr():
                part.copy_(base.weight)
            if offset is not None and base.bias is not None and offset.data_ptr() != base.bias.data_ptr():
                offset.copy_(base.bias)

    def take_gradient(self, grad_OI: Tensor, factor: Tensor | None = None) -> None:
        """Into the weights' `grad`, past autograd. The first after `refresh` replaces what was there."""
        if self._gradient is None:
            self._gradient = torch.empty(grad_OI.shape, dtype=torch.float32, device=grad_OI.device)
        if self._is_fresh:
            self._gradient.copy_(grad_OI)
            if factor is not None:
                self._gradient *= factor
        else:
            self._gradient += grad_OI if factor is None else grad_OI.float() * factor
        self._is_fresh = False
        for base, part in zip(self._bases, torch.split(self._gradient, self.sizes), strict=True):
            if base.weight.requires_grad:
                base.weight.grad = part


class _Product(torch.autograd.Function):
    """Keeps x, and x A^T where there are adapters; nothing else."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, projection: Projection, *_: Tensor | None) -> Tensor:
        weight_OI, bias = projection.weight_and_bias()
        y_TO = functional.linear(x_TI, weight_OI, bias)
        adapter = projection.down_and_up()
        ctx.projection = projection
        if adapter is None:
            ctx.save_for_backward(x_TI, weight_OI)
            return y_TO
        down_RI, up_OR = adapter
        low_TR = torch.mm(x_TI, down_RI.t())
        ctx.save_for_backward(x_TI, weight_OI, low_TR, down_RI, up_OR)
        return y_TO.addmm_(low_TR, up_OR.t())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        projection = cast("Projection", ctx.projection)
        x_TI, weight_OI, *adapter = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        grad_TO = gradients[0]
        grad_x = torch.mm(grad_TO, weight_OI) if ctx.needs_input_grad[0] else None
        parts = [[None, None, None, None] for _ in projection.sizes]
        if projection.trains_weight:
            projection.take_gradient(torch.mm(grad_TO.t(), x_TI))
        if projection.trains_bias:
            _put(parts, 1, torch.split(_column_sums(grad_TO), projection.sizes))
        if adapter:
            low_TR, down_RI, up_OR = adapter
            grad_low = torch.mm(grad_TO, up_OR)
            if grad_x is not None:
                grad_x.addmm_(grad_low, down_RI)
            _put(parts, 2, torch.split(torch.mm(grad_low.t(), x_TI).float(), projection.ranks))
            _put(parts, 3, _blocks(projection, torch.mm(low_TR.t(), grad_TO)))
        flat = [part for four in parts for part in four]
        needed = [part if need else None for part, need in zip(flat, ctx.needs_input_grad[2:], strict=True)]
        return (grad_x, None, *needed)


def _put(parts: list[list[Any]], place: int, tensors: Sequence[Tensor]) -> None:
    for four, tensor in zip(parts, tensors, strict=True):
        four[place] = tensor


def _blocks(projection: Projection, grad_RO: Tensor) -> list[Tensor]:
    """Gradient of each B, out x r: the blocks on the diagonal."""
    found: list[Tensor] = []
    row = column = 0
    for size, rank, scale in zip(projection.sizes, projection.ranks, projection.scales, strict=True):
        found.append(grad_RO[row : row + rank, column : column + size].t().float() * scale)
        row, column = row + rank, column + size
    return found


def _column_sums(grad_TO: Tensor) -> Tensor:
    return grad_TO.sum(dim=0, dtype=torch.float32)


def has_plain_head(model: Any) -> bool:
    """Whether logits are one product with a weight, or there are none."""
    head = model.get_output_embeddings()
    return head is None or (type(head) is nn.Linear and cast("Any", head).bias is None)
