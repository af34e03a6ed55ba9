"""RMSNorm of an fp32 stream into the type of the products.      (Zhang and Sennrich 2019)

y = x / rms(x) * w,   rms(x) = sqrt(mean(x^2) + eps)         x: T x E, w: E
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import passes
from .heads import Heads


def add(x_TE: Tensor, added_TE: Tensor) -> Tensor:
    """Of the stream in fp32 and what a product makes."""
    found = passes.between(added_TE.dtype, added_TE.device)
    return x_TE + added_TE if found is None else cast("Tensor", found.add(x_TE, added_TE))


def rms_norm(
    x_TE: Tensor, weight_E: Tensor, *, eps: float, dtype: torch.dtype, added_TE: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """x + added, y of it in `dtype`, and T x 1 of 1 / rms."""
    found = passes.between(dtype, x_TE.device)
    if found is not None:
        return cast(
            "tuple[Tensor, Tensor, Tensor]", found.rms_norm(x_TE, weight_E, eps=eps, added_TE=added_TE)
        )
    x_TE = x_TE if added_TE is None else x_TE + added_TE
    inverse_T1 = _dot(x_TE, x_TE)[:, None].div_(x_TE.shape[-1]).add_(eps).rsqrt_()
    return x_TE, (x_TE * inverse_T1).mul_(weight_E).to(dtype), inverse_T1


def rms_norm_backward(
    grad_TE: Tensor, kept: tuple[Tensor, Tensor, Tensor], *, beside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient of x in fp32, and once more in the type of y. `kept`: x, 1 / rms and the weight. `beside`:
    what else x has as a gradient."""
    found = passes.between(grad_TE.dtype, grad_TE.device)
    if found is not None:
        return cast("tuple[Tensor, Tensor]", found.rms_norm_backward(grad_TE, kept, beside=beside))
    x_TE, inverse_T1, weight_E = kept
    # dx = (g - x * mean(g x) / rms^2) / rms with g = dy w
    scaled_TE = grad_TE.float() * weight_E
    mean_T1 = _dot(scaled_TE, x_TE)[:, None].div_(x_TE.shape[-1])
    factor_T1 = mean_T1.mul_(inverse_T1.square()).neg_()
    if beside is None:
        grad_x = scaled_TE.addcmul_(x_TE, factor_T1).mul_(inverse_T1)
    else:
        grad_x = torch.addcmul(beside, scaled_TE, inverse_T1).addcmul_(x_TE, factor_T1.mul_(inverse_T1))
    return grad_x, grad_x.to(grad_TE.dtype)


def rms_norm_weight_gradient(grad_TE: Tensor, kept: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """E in fp32."""
    x_TE, inverse_T1, _ = kept
    found = passes.on_gpu(grad_TE.dtype, grad_TE.device)
    if found is not None:
        return cast("Tensor", found.rms_norm_weight_gradient(grad_TE, x_TE, inverse_T1))
    return (grad_TE.float() * x_TE).mul_(inverse_T1).sum(dim=0)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, weight_E: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        _, y_TE, inverse_T1 = rms_norm(x_TE, weight_E, eps=eps, dtype=dtype)
        ctx.save_for_backward(x_TE, inverse_T1, weight_E)
        return y_TE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        kept = cast("tuple[Tensor, Tensor, Tensor]", ctx.saved_tensors)
        (grad_TE,) = gradients
        grad_weight = rms_norm_weight_gradient(grad_TE, kept) if ctx.needs_input_grad[1] else None
        return rms_norm_backward(grad_TE, kept)[0], grad_weight, None, None


def _dot(a_TE: Tensor, b_TE: Tensor) -> Tensor:
    # einsum makes a batch of products of this, six times slower.
    return cast("Tensor", cast("Any", torch.linalg).vecdot(a_TE, b_TE))


class CentredNorm:
    """A module's LayerNorm of an fp32 stream, read anew when it is trained."""

    def __init__(self, module: nn.LayerNorm) -> None:
        self._module = module
        parts = (module.weight, module.bias)
        self._frozen = None if any(part.requires_grad for part in parts) else [part.float() for part in parts]

    def __call__(self, x_TE: Tensor) -> Tensor:
        own = self._module
        weight, bias = self._frozen or (own.weight.float(), own.bias.float())
        return functional.layer_norm(x_TE, own.normalized_shape, weight, bias, own.eps)


class Norm:
    """A module's RMSNorm into `dtype`, its weight read anew when it is trained."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._weight = cast("Tensor", module.weight)
        self.eps = float(cast("Any", module).variance_epsilon)
        self._frozen = None if self._weight.requires_grad else self._weight.detach().float()
        self.dtype = dtype

    @property
    def weight(self) -> Tensor:
        """E in fp32."""
        return self._weight.float() if self._frozen is None else self._frozen

    def __call__(self, x_TE: Tensor) -> Tensor:
        # apply() is untyped in torch's stubs.
        return cast("Tensor", _RmsNorm.apply(x_TE.float(), self.weight, self.eps, self.dtype))  # pyright: ignore[reportUnknownMemberType]


def norm_heads(qkv: Tensor, norms: tuple[Norm, Norm], heads: Heads) -> Tensor:
    """Each query and key head of T x (H + 2 K) D normed, which Qwen3 does."""
    sizes = [one * heads.width for one in (heads.query, heads.key, heads.key)]
    query, key, value = torch.split(qkv, sizes, dim=-1)
    query, key = (
        norm(part.reshape(-1, heads.width)).view(part.shape)
        for norm, part in zip(norms, (query, key), strict=True)
    )
    return torch.cat([query, key, value], dim=-1)
