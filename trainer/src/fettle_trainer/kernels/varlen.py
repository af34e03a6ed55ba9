"""Attention of rows laid end to end on a GPU: one flash kernel for all of them, told where each row begins.

Legend: T tokens of all rows, H query heads, K key heads, D head width, B rows.
"""

import inspect
from collections.abc import Callable
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

from .heads import Heads

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


def attend_varlen(qkv: Tensor, rows: Starts, heads: Heads, *, attention: Attention | None = None) -> Tensor:
    """T x H D of T x (H + 2 K) D. `attention`: with the face of PyTorch's `varlen_attn`, which is the default
    and wants 16 bits and CUDA."""
    parts = torch.split(qkv, [one * heads.width for one in (heads.query, heads.key, heads.key)], dim=-1)
    query, key, value = (part.view(len(qkv), -1, heads.width) for part in parts)
    # apply() is untyped in torch's stubs.
    turned = cast("Any", _Turned).apply
    query, key = turned(query, rows), turned(key, rows)
    run = attention or _varlen()
    options: dict[str, Any] = {}
    if heads.group > 1 and "enable_gqa" in inspect.signature(run).parameters:
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


def _varlen() -> Attention:
    """Raises RuntimeError where this PyTorch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise RuntimeError("This PyTorch has no varlen_attn.") from error
    return cast("Attention", varlen_attn)
