"""Attention of rows laid end to end on a GPU: one flash kernel for all of them, told where each row begins.

Legend: T tokens of all rows, H query heads, K key heads, D head width, B rows.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

from . import passes
from .heads import Heads
from .norm import Norm, norm_heads

Attention = Callable[..., Tensor]


class Starts:
    """The rows of a micro-batch, and the tables that queries and keys are turned by."""

    def __init__(self, lengths: tuple[int, ...], turn: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
        """`turn`: cosines and sines of each token, T x D."""
        cos_TD, sin_TD = (table.to(dtype) for table in turn)
        half = sin_TD.shape[-1] // 2
        self.cos = cos_TD[:, None]
        self.sin = torch.cat([-sin_TD[:, :half], sin_TD[:, half:]], dim=-1)[:, None]
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        self.starts = starts.to(cos_TD.device, non_blocking=True)
        self.longest = max(lengths)


class _Turned(torch.autograd.Function):
    """Rotary positions; keeps nothing but the tables. The sign of the first half lies in the sines."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, rows: Starts) -> Tensor:
        ctx.rows = rows
        return (x_THD * rows.cos).addcmul_(x_THD.roll(x_THD.shape[-1] // 2, dims=-1), rows.sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows = cast("Starts", ctx.rows)
        (grad_THD,) = gradients
        swapped = (grad_THD * rows.sin).roll(grad_THD.shape[-1] // 2, dims=-1)
        return (grad_THD * rows.cos).add_(swapped), None


class _NormedAndTurned(torch.autograd.Function):
    """Query, key and value heads in one kernel each; keeps the columns they are made of where those are
    normed."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, query_weight: Tensor | None, key_weight: Tensor | None, way: "_Way"
    ) -> tuple[Tensor, ...]:
        query, key, value = torch.split(qkv, way.sizes, dim=-1)
        ctx.way, ctx.shape = way, qkv.shape
        ctx.save_for_backward(*(() if query_weight is None else (qkv, query_weight, key_weight)))
        return (
            way.turned(query, query_weight, way.eps[0]),
            way.turned(key, key_weight, way.eps[1]),
            value.view(len(qkv), -1, way.width),
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        way = cast("_Way", ctx.way)
        *turned, grad_value = gradients
        grad_qkv = grad_value.new_empty(ctx.shape)
        *parts, value_part = torch.split(grad_qkv, way.sizes, dim=-1)
        value_part.copy_(grad_value.reshape(value_part.shape))
        weights: list[Tensor | None] = [None, None]
        columns, *kept = ctx.saved_tensors or (grad_qkv, None, None)
        columns = torch.split(columns, way.sizes, dim=-1)
        for place, gradient in enumerate(turned):
            needed = bool(ctx.needs_input_grad[1 + place])
            normed = None if kept[place] is None else (columns[place], kept[place], way.eps[place])
            weights[place] = way.passes.turn_back(
                gradient, way.tables, parts[place], normed=normed, sums=needed
            )
        return grad_qkv, *weights, None


@dataclass(frozen=True)
class _Way:
    """`sizes`: columns of queries, keys and values; `eps`: of the norms of the first two."""

    passes: Any
    tables: tuple[Tensor, Tensor]
    sizes: list[int]
    width: int
    eps: tuple[float, float]

    def turned(self, x_TC: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
        return cast(
            "Tensor", self.passes.turn(x_TC, self.tables, width=self.width, weight_D=weight_D, eps=eps)
        )


def _turned_heads(
    qkv: Tensor, rows: Starts, heads: Heads, *, norms: tuple[Norm, Norm] | None
) -> tuple[Tensor, ...]:
    """Queries T x H x D, keys and values T x K x D."""
    sizes = [one * heads.width for one in (heads.query, heads.key, heads.key)]
    found = passes.on_gpu(qkv.dtype, qkv.device)
    # apply() is untyped in torch's stubs.
    if found is not None:
        eps = (0.0, 0.0) if norms is None else (norms[0].eps, norms[1].eps)
        way = _Way(found, (rows.cos[:, 0], rows.sin[:, 0]), sizes, heads.width, eps)
        weights = (None, None) if norms is None else (norms[0].weight, norms[1].weight)
        return cast("Any", _NormedAndTurned).apply(qkv, *weights, way)
    qkv = qkv if norms is None else norm_heads(qkv, norms, heads)
    query, key, value = (part.view(len(qkv), -1, heads.width) for part in torch.split(qkv, sizes, dim=-1))
    turned = cast("Any", _Turned).apply
    return turned(query, rows), turned(key, rows), value


def attend_varlen(
    qkv: Tensor,
    rows: Starts,
    heads: Heads,
    *,
    norms: tuple[Norm, Norm] | None = None,
    attention: Attention | None = None,
) -> Tensor:
    """T x H D of T x (H + 2 K) D. `norms`: of each query and key head. `attention`: with the face of
    PyTorch's `varlen_attn`, which is the default and wants 16 bits and CUDA."""
    query, key, value = _turned_heads(qkv, rows, heads, norms=norms)
    run = attention or _varlen()
    options: dict[str, Any] = {}
    if heads.group > 1 and _shares(run):
        options["enable_gqa"] = True
    elif heads.group > 1:
        key, value = (part.repeat_interleave(heads.group, dim=1) for part in (key, value))
    window = heads.window - 1 if heads.window else -1
    out = run(
        query,
        key,
        value,
        rows.starts,
        rows.starts,
        rows.longest,
        rows.longest,
        scale=heads.scale,
        window_size=(window, 0),
        **options,
    )
    return out.reshape(len(qkv), -1)


def shares_keys() -> bool:
    """Whether queries that share a key read it where it lies: else each key is copied for each of them."""
    try:
        return _shares(_varlen())
    except RuntimeError:
        return True


def _shares(attention: Attention) -> bool:
    return "enable_gqa" in inspect.signature(attention).parameters


def _varlen() -> Attention:
    """Raises RuntimeError where this PyTorch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise RuntimeError("This PyTorch has no varlen_attn.") from error
    return cast("Attention", varlen_attn)
