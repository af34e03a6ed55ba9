"""PyTorch's flash attention for CPUs, for rows whose weights would be too much to keep. Shapes as in
heads.py."""

import torch
from torch import Tensor

from .heads import Heads, Part


def flash(part: Part, target: Tensor, heads: Heads) -> list[Tensor]:
    """Fills `target` as `part.query`; returns what the way back needs."""
    mask = _window(part.length, heads, part.query.dtype)
    out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_spread(part, heads), 0.0, mask is None, attn_mask=mask, scale=1.0
    )
    joined = out.view(heads.key, heads.group, part.length, heads.width).transpose(1, 2)
    target.copy_(joined.reshape(target.shape))
    return [out, normaliser]


def flash_backward(kept: tuple[Part, Tensor, Tensor], grad: Tensor, to: tuple[Part, Heads]) -> None:
    """`kept`: the row and what `flash` returned; fills the first of `to`."""
    (part, out, normaliser), (target, heads) = kept, to
    mask = _window(part.length, heads, grad.dtype)
    apart = grad.view(heads.key, part.length, heads.group, heads.width).transpose(1, 2)
    to_query, to_key, to_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        apart.reshape(out.shape),
        *_spread(part, heads),
        out,
        normaliser,
        0.0,
        mask is None,
        attn_mask=mask,
        scale=1.0,
    )
    grouped = (heads.key, heads.group, part.length, heads.width)
    target.query.copy_(to_query.view(grouped).transpose(1, 2).reshape(target.query.shape))
    target.key.copy_(to_key.view(grouped).sum(dim=1))
    target.value.copy_(to_value.view(grouped).sum(dim=1))


def _spread(part: Part, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """1 x H x L x D each, as PyTorch's attention asks."""
    apart = part.query.view(heads.key, part.length, heads.group, heads.width).transpose(1, 2)
    return (
        apart.reshape(1, heads.query, part.length, heads.width),
        part.key.repeat_interleave(heads.group, dim=0)[None],
        part.value.repeat_interleave(heads.group, dim=0)[None],
    )


def _window(length: int, heads: Heads, dtype: torch.dtype) -> Tensor | None:
    """Causal, and no further back than the window; None where that is no bound."""
    if not heads.window or heads.window >= length:
        return None
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    hidden = (distance < 0) | (distance >= heads.window)
    return torch.zeros(length, length, dtype=dtype).masked_fill_(hidden, float("-inf"))
