"""Linear layers that read one input, together: query, key and value; gate and up.

    y = x W^T + b + s (x A^T) B^T         W: layers one below the other, A: adapters likewise, B: block
    diagonal

Frozen weights are held once, in the type of the products; each layer's own weight becomes a view of them.
What is trained stays in fp32, and a copy in the type of the products is renewed after each optimiser step.
Gradients go into `grad` past autograd, where they lie in one place for good: new memory each step costs
more than the sums. A frozen weight in 4 bits is made whole for each product, and kept by none.

Legend: T tokens, I inputs, O outputs of a product, R ranks of all adapters together, r of a product's.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..adapters import LoraLinear
from ..four_bits import Linear4


class _Layer:
    """A layer's own weight and bias, typed as what they may be, and its adapter."""

    def __init__(self, layer: nn.Module) -> None:
        self.adapter = layer if isinstance(layer, LoraLinear) else None
        base = cast("nn.Linear | Linear4", layer.base if isinstance(layer, LoraLinear) else layer)
        self.small = base if isinstance(base, Linear4) else None
        # Of a layer in 4 bits an empty one: it has no weight until it is made.
        self.weight = base.weight if isinstance(base, nn.Linear) else base.packed.new_empty(0)
        self.shape = base.weight.shape if isinstance(base, nn.Linear) else base.shape
        self.bias: nn.Parameter | None = base.bias
        self.rank = 0 if self.adapter is None else int(self.adapter.lora_A.shape[0])

    def whole(self) -> Tensor:
        """The weight; of 4 bits made anew."""
        return self.weight if self.small is None else self.small.weight


class _Gradient:
    """The first after a refresh replaces what was there, others are added."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self.is_fresh = True

    def add(self, part: Tensor, factor: Tensor | None = None) -> Tensor:
        if self._sum is None:
            self._sum = torch.empty(part.shape, dtype=torch.float32, device=part.device)
        if self.is_fresh:
            self._sum.copy_(part)
            if factor is not None:
                self._sum *= factor
        else:
            self._sum += part if factor is None else part.float() * factor
        self.is_fresh = False
        return self._sum


class _Product:
    """One product: layers one below the other."""

    def __init__(self, layers: Sequence[_Layer], dtype: torch.dtype) -> None:
        self._layers = layers
        self._dtype, self.device = dtype, layers[0].weight.device
        self.sizes = [int(one.shape[0]) for one in layers]
        self.inputs = int(layers[0].shape[1])
        self.rank = sum(one.rank for one in layers)
        self.trains_weight = any(one.weight.requires_grad for one in layers)
        self.trains_bias = any(one.bias is not None and one.bias.requires_grad for one in layers)
        # None where a layer is in 4 bits.
        self._kept, self.bias = _joined(layers, dtype, keep=self.trains_weight)
        self.up = torch.zeros(sum(self.sizes), self.rank, dtype=dtype, device=self.device)
        self.gradients = [_Gradient() for _ in range(2 + len(layers))]

    @property
    def weight(self) -> Tensor:
        """O x I; of layers in 4 bits made anew."""
        return self._made() if self._kept is None else self._kept

    @torch.no_grad()
    def _made(self) -> Tensor:
        parts = [one.whole().to(self._dtype) for one in self._layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def blocks(self, of_OR: Tensor) -> list[tuple[LoraLinear, Tensor]]:
        """Each adapter and its block on the diagonal."""
        found: list[tuple[LoraLinear, Tensor]] = []
        row = column = 0
        for size, one in zip(self.sizes, self._layers, strict=True):
            if one.adapter is not None:
                found.append((one.adapter, of_OR[row : row + size, column : column + one.rank]))
            row, column = row + size, column + one.rank
        return found

    def copies(self) -> list[tuple[Tensor, Tensor]]:
        """What follows a trained tensor, and that tensor."""
        found = [(block, one.lora_B.detach()) for one, block in self.blocks(self.up)]
        if self.trains_weight:
            parts = torch.split(self.weight, self.sizes)
            found += [(part, one.weight.detach()) for part, one in zip(parts, self._layers, strict=True)]
        if self.trains_bias and self.bias is not None:
            for part, one in zip(torch.split(self.bias, self.sizes), self._layers, strict=True):
                found += [] if one.bias is None else [(part, one.bias.detach())]
        return found

    def take(self, grad_TO: Tensor, x_TI: Tensor) -> None:
        if self.trains_weight:
            self.take_weight(torch.mm(grad_TO.t(), x_TI))
        if self.trains_bias:
            whole = self.gradients[1].add(grad_TO.sum(dim=0, dtype=torch.float32))
            for part, one in zip(torch.split(whole, self.sizes), self._layers, strict=True):
                _give(one.bias, part)

    def take_weight(self, grad_OI: Tensor, factor: Tensor | None = None) -> None:
        whole = self.gradients[0].add(grad_OI, factor)
        for part, one in zip(torch.split(whole, self.sizes), self._layers, strict=True):
            _give(one.weight, part)

    def take_up(self, grad_rO: Tensor) -> None:
        blocks = self.blocks(grad_rO.t())
        for (one, block), gradient in zip(blocks, self.gradients[2 : 2 + len(blocks)], strict=True):
            _give(one.lora_B, gradient.add(block))


class Projection:
    """`layers`: nn.Linear, or LoRA over one, all with the same input. `apart`: a product for each, where one
    for all is too wide to be fast; adapters are joined all the same."""

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype, *, apart: bool = False) -> None:
        own = [_Layer(layer) for layer in layers]
        self.products = [_Product([one], dtype) for one in own] if apart else [_Product(own, dtype)]
        self.adapters = [one.adapter for one in own if one.adapter is not None]
        self.ranks = [one.rank for one in own if one.adapter is not None]
        device = self.products[0].device
        self.down = torch.zeros(sum(self.ranks), self.products[0].inputs, dtype=dtype, device=device)
        self.scale = _scale(self.adapters, self.ranks, self.down)
        self._down_gradient = _Gradient()
        self._copies = [copy for product in self.products for copy in product.copies()]
        parts = torch.split(self.down, self.ranks)
        self._copies += [(part, one.lora_A.detach()) for part, one in zip(parts, self.adapters, strict=True)]
        # What makes the output part of the graph, as nothing that is trained is seen by autograd.
        trained = bool(self.adapters) or any(one.trains_weight or one.trains_bias for one in self.products)
        self.anchor = torch.zeros((), device=device, requires_grad=True) if trained else None
        self.refresh()

    @property
    def sizes(self) -> list[int]:
        return self.products[0].sizes

    @property
    def trains_weight(self) -> bool:
        return self.products[0].trains_weight

    def __call__(self, x_TI: Tensor) -> Tensor:
        """T x O of the one product."""
        return self.each(x_TI)[0]

    def each(self, x_TI: Tensor) -> tuple[Tensor, ...]:
        """T x O of each product."""
        # apply() is untyped in torch's stubs.
        return cast("tuple[Tensor, ...]", _Products.apply(x_TI, self, self.anchor))  # pyright: ignore[reportUnknownMemberType]

    def forward(self, x_TI: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """T x O of each product; and s x A^T, T x R, where there are adapters. `backward` wants it back."""
        found = tuple(functional.linear(x_TI, one.weight, one.bias) for one in self.products)
        if not self.adapters:
            return found, None
        low_TR = torch.mm(x_TI, self.down.t()).mul_(self.scale)
        for y_TO, one, low_Tr in zip(found, self.products, self._columns(low_TR), strict=True):
            y_TO.addmm_(low_Tr, one.up.t())
        return found, low_TR

    def backward(
        self, gradients: Sequence[Tensor], x_TI: Tensor, low_TR: Tensor | None, *, needs_input: bool = True
    ) -> Tensor | None:
        """Gradient of x, T x I, unless nobody needs it; those of what is trained go into `grad`."""
        grad_x: Tensor | None = None
        if needs_input:
            for grad_TO, one in zip(gradients, self.products, strict=True):
                weight_OI = one.weight
                grad_x = torch.mm(grad_TO, weight_OI) if grad_x is None else grad_x.addmm_(grad_TO, weight_OI)
        for one, grad_TO in zip(self.products, gradients, strict=True):
            one.take(grad_TO, x_TI)
        if low_TR is not None:
            parts = [torch.mm(grad_TO, one.up) for grad_TO, one in zip(gradients, self.products, strict=True)]
            grad_low = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).mul_(self.scale)
            if grad_x is not None:
                grad_x.addmm_(grad_low, self.down)
            self._take_down(torch.mm(grad_low.t(), x_TI))
            for one, grad_TO, low_Tr in zip(self.products, gradients, self._columns(low_TR), strict=True):
                one.take_up(torch.mm(low_Tr.t(), grad_TO))
        return grad_x

    def _columns(self, low_TR: Tensor) -> tuple[Tensor, ...]:
        return torch.split(low_TR, [one.rank for one in self.products], dim=1)

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """O x I and O of the one product, in its type."""
        return self.products[0].weight, self.products[0].bias

    def take_gradient(self, grad_OI: Tensor, factor: Tensor) -> None:
        """Into the weights' `grad` of the one product."""
        self.products[0].take_weight(grad_OI, factor)

    def _take_down(self, grad_RI: Tensor) -> None:
        whole = self._down_gradient.add(grad_RI)
        for part, one in zip(torch.split(whole, self.ranks), self.adapters, strict=True):
            _give(one.lora_A, part)

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over what an optimiser did. Asked for, not noticed: fused AdamW does not count versions."""
        self._down_gradient.is_fresh = True
        for product in self.products:
            for gradient in product.gradients:
                gradient.is_fresh = True
        stale = [(copy, own) for copy, own in self._copies if copy.data_ptr() != own.data_ptr()]
        if stale:
            copies, own = zip(*stale, strict=True)
            # Public in all but name: what torch's own optimisers copy lists with.
            torch._foreach_copy_(copies, own)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


class _Products(torch.autograd.Function):
    """Keeps x, and s x A^T where there are adapters; nothing else. Weights are those of the forward pass:
    nothing is refreshed before the way back."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, projection: Projection, _: Tensor | None) -> tuple[Tensor, ...]:
        found, low_TR = projection.forward(x_TI)
        ctx.projection = projection
        ctx.save_for_backward(x_TI, low_TR)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        projection = cast("Projection", ctx.projection)
        needs_input = cast("bool", ctx.needs_input_grad[0])
        return projection.backward(gradients, *ctx.saved_tensors, needs_input=needs_input), None, None


def _give(parameter: Tensor | None, gradient: Tensor) -> None:
    if parameter is not None and parameter.requires_grad:
        parameter.grad = gradient


def _scale(adapters: Sequence[LoraLinear], ranks: Sequence[int], like: Tensor) -> float | Tensor:
    """Of the columns of x A^T: one number where all are alike."""
    scales = [one.scale for one in adapters]
    if len(set(scales)) <= 1:
        return scales[0] if scales else 1.0
    wide = [scale for scale, rank in zip(scales, ranks, strict=True) for _ in range(rank)]
    return torch.tensor(wide, dtype=like.dtype, device=like.device)


@torch.no_grad()
def _joined(
    layers: Sequence[_Layer], dtype: torch.dtype, *, keep: bool
) -> tuple[Tensor | None, Tensor | None]:
    """`keep`: the layers' own weights stay where they are."""
    first = layers[0]
    if len(layers) == 1 and first.small is None and first.weight.dtype == dtype:
        return first.weight.detach(), None if first.bias is None else first.bias.detach()
    bias = None
    if any(one.bias is not None for one in layers):
        none = torch.zeros((), dtype=dtype, device=first.weight.device)
        bias = torch.cat(
            [none.expand(one.shape[0]) if one.bias is None else one.bias.to(dtype) for one in layers]
        )
    if any(one.small is not None for one in layers):
        return None, bias
    weight = torch.cat([one.weight.to(dtype) for one in layers])
    if not keep:
        for one, part in zip(layers, torch.split(weight, [len(one.weight) for one in layers]), strict=True):
            if one.weight.dtype == dtype:
                one.weight.data = part
    return weight, bias


def has_plain_head(model: Any) -> bool:
    """Whether logits are one product with a weight, or there are none."""
    head = model.get_output_embeddings()
    return head is None or (type(head) is nn.Linear and cast("Any", head).bias is None)
