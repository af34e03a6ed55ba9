"""Attention of rows laid end to end, each row on its own: whole products for short rows, blocks for long
ones.

PyTorch's attention for CPUs makes one call a row, and its backward pass is several times slower on short
rows than the plain products it stands for. Here each row is scores, softmax and a weighted sum (Vaswani et
al. 2017, equation 1), with query heads that share a key head in one product. A causal row is cut into
blocks of queries, and no block looks at keys after its last query. Weights are kept for the backward pass;
rows longer than `LONGEST_PLAIN` go to PyTorch's flash attention (attention_long.py), which keeps none.

Legend: T tokens of all rows, H query heads, K key heads, G = H / K, L tokens of one row, D head width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from . import passes
from .attention_long import flash, flash_backward
from .heads import Heads, Part
from .layout import LONGEST_PLAIN, Layout

QUERIES_AT_ONCE = 160
_FEW_KEYS = 64


@dataclass(frozen=True, slots=True)
class Block:
    """Queries `first..last` of a row against its keys `low..high`."""

    first: int
    last: int
    low: int
    high: int

    def from_zero(self) -> "Block":
        """The same shape of mask, wherever it lies."""
        return Block(self.first - self.low, self.last - self.low, 0, self.high - self.low)


@lru_cache(maxsize=64)
def _mask(block: Block, heads: Heads, dtype: torch.dtype) -> Tensor | None:
    """(queries x group) x keys of 0 and minus infinity. None when every query sees every key."""
    distance = torch.arange(block.first, block.last)[:, None] - torch.arange(block.high)[None]
    hidden = distance < 0
    if heads.window:
        hidden |= distance >= heads.window
    if not bool(hidden.any()):
        return None
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return mask.repeat_interleave(heads.group, dim=0)


def _blocks(part: Part, heads: Heads) -> Iterator[Block]:
    if not heads.causal:
        yield Block(0, part.length, 0, part.key_length)
        return
    count = -(-part.length // QUERIES_AT_ONCE)
    size = -(-part.length // count)
    for first in range(0, part.length, size):
        last = min(part.length, first + size)
        yield Block(first, last, max(0, first - heads.window + 1) if heads.window else 0, last)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What forward and backward know beside tensors."""

    layout: Layout
    heads: Heads
    # H x L x L for the layout's longest, laid over the scores of each, cut to its size: learned
    # positions, a mask.
    bias: Tensor | None

    def parts(self, rows: Tensor) -> Iterator[Part]:
        """Queries, keys and values of each run of rows: views."""
        queries, keys, values = torch.split(rows, self.layout.sizes)
        heads, start, key_start = self.heads, 0, 0
        for run in self.layout.runs:
            end, key_end = start + run.count * run.length, key_start + run.count * run.key_length
            key_rows = slice(key_start * heads.key, key_end * heads.key)
            batch = run.count * heads.key
            yield Part(
                queries[start * heads.query : end * heads.query].view(batch, -1, heads.width),
                keys[key_rows].view(batch, run.key_length, heads.width),
                values[key_rows].view(batch, run.key_length, heads.width),
                heads.group,
                run.mask,
            )
            start, key_start = end, key_end

    def queries(self, rows: Tensor) -> Iterator[Tensor]:
        """Each run's share of something in the order of the queries."""
        start = 0
        for run in self.layout.runs:
            end = start + run.count * run.length * self.heads.query
            yield rows[start:end].view(run.count * self.heads.key, -1, self.heads.width)
            start = end

    def is_long(self, part: Part) -> bool:
        return part.length > LONGEST_PLAIN and self.heads.causal and self.bias is None

    def is_plain_causal(self, scores: Tensor) -> bool:
        """Whether scores depend on nothing but queries and keys, and on which come before."""
        plain = self.heads.causal and self.bias is None and not self.heads.dropout
        return plain and scores.shape[-1] <= passes.MOST_KEYS and passes.fits(scores)

    def seen(self, block: Block) -> dict[str, int]:
        before = block.first - block.low
        return {"group": self.heads.group, "before": before, "window": self.heads.window}

    def added(self, part: Part, block: Block, dtype: torch.dtype) -> list[Tensor]:
        found = [] if part.mask is None else [part.mask.to(dtype)]
        if self.bias is not None:
            found.append(self.bias[:, block.first : block.last, block.low : block.high])
        mask = _mask(block.from_zero(), self.heads, dtype) if self.heads.causal else None
        return found if mask is None else [*found, mask]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, bias: Tensor | None, layout: Layout, heads: Heads) -> Tensor:
        """`source`: head rows in the layout's order of the input; returns T x H D."""
        plan = _Plan(layout, heads, bias)
        rows = _turned(source, layout, heads)
        out = torch.empty_like(rows[: layout.sizes[0]])
        kept: list[Tensor] = []
        for part, target in zip(plan.parts(rows), plan.queries(out), strict=True):
            kept += flash(part, target, heads) if plan.is_long(part) else _row(plan, part, target)
        ctx.plan = plan
        ctx.save_for_backward(rows, *kept)
        return out.index_select(0, layout.query_inverse).view(layout.tokens, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        plan = cast("_Plan", ctx.plan)
        layout, heads = plan.layout, plan.heads
        rows, *kept = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        grad_out = gradients[0].reshape(-1, heads.width).index_select(0, layout.query_rows)
        grad_out.index_fill_(0, layout.unread, 0)
        grad_rows = torch.empty_like(rows)
        grad_bias = torch.zeros_like(plan.bias) if plan.bias is not None and ctx.needs_input_grad[1] else None
        back = _Back(plan, iter(kept), grad_bias)
        parts = zip(plan.parts(rows), plan.parts(grad_rows), plan.queries(grad_out), strict=True)
        for part, to, grad in parts:
            if plan.is_long(part):
                flash_backward((part, next(back.kept), next(back.kept)), grad, (to, heads))
            else:
                back.row(part, to, grad)
        return _turned_back(grad_rows, layout, heads), grad_bias, None, None


def _turned(source: Tensor, layout: Layout, heads: Heads) -> Tensor:
    """The heads of each row in turn; queries scaled, queries and keys turned by their positions."""
    if layout.turn is not None and passes.fits(source):
        return passes.turn(source, layout.order, layout.turn)
    rows = source.index_select(0, layout.order)
    turned = rows[: layout.sizes[0] + layout.sizes[1]]
    if layout.turn is not None:
        cos, sin = layout.turn
        swapped = turned.roll(heads.width // 2, dims=-1)
        turned.mul_(cos).addcmul_(swapped, sin)
    elif heads.scale != 1:
        rows[: layout.sizes[0]] *= heads.scale
    return rows


def _turned_back(grad_rows: Tensor, layout: Layout, heads: Heads) -> Tensor:
    if layout.turn is not None and passes.fits(grad_rows):
        return passes.turn_back(grad_rows, layout.inverse, layout.turn)
    turned = grad_rows[: layout.sizes[0] + layout.sizes[1]]
    if layout.turn is not None:
        cos, sin = layout.turn
        swapped = (turned * sin).roll(heads.width // 2, dims=-1)
        turned.mul_(cos).add_(swapped)
    elif heads.scale != 1:
        grad_rows[: layout.sizes[0]] *= heads.scale
    return grad_rows.index_select(0, layout.inverse)


def _row(plan: _Plan, part: Part, target: Tensor) -> list[Tensor]:
    """Fills `target`; returns the weights to keep, each with its dropout mask where there is dropout."""
    kept: list[Tensor] = []
    heads = plan.heads
    for block in _blocks(part, heads):
        asked = slice(block.first * heads.group, block.last * heads.group)
        scores = torch.bmm(part.query[:, asked], part.key[:, block.low : block.high].transpose(1, 2))
        weight = _weights(plan, part, block, scores=scores)
        kept.append(weight)
        if heads.dropout:
            kept.append(_dropout_mask(weight, heads.dropout))
            weight = weight * kept[-1]
        torch.bmm(weight, part.value[:, block.low : block.high], out=target[:, asked])
    return kept


def _weights(plan: _Plan, part: Part, block: Block, *, scores: Tensor) -> Tensor:
    if plan.is_plain_causal(scores):
        return passes.causal_softmax_(scores, **plan.seen(block))
    for added in plan.added(part, block, scores.dtype):
        _apart(scores, plan.heads).add_(added)
    return _softmax(scores)


def _apart(scores: Tensor, heads: Heads) -> Tensor:
    """N x K x ... of (N K) x ..., also where there are no queries."""
    return scores.view(len(scores) // heads.key, heads.key, *scores.shape[1:])


def _softmax(scores: Tensor) -> Tensor:
    """PyTorch's softmax over few keys takes half the time when it writes fp32."""
    if scores.shape[-1] > _FEW_KEYS:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _dropout_mask(weight: Tensor, dropout: float) -> Tensor:
    kept = torch.rand_like(weight, dtype=torch.float32).ge_(dropout)
    return kept.to(weight.dtype).div_(1 - dropout)


@dataclass(frozen=True, slots=True)
class _Back:
    plan: _Plan
    kept: Iterator[Tensor]
    grad_bias: Tensor | None

    def row(self, part: Part, to: Part, grad: Tensor) -> None:
        """Fills `to`, the gradients of `part`, from that of its output."""
        heads = self.plan.heads
        whole = True
        for block in _blocks(part, heads):
            asked = slice(block.first * heads.group, block.last * heads.group)
            seen = slice(block.low, block.high)
            weight = used = next(self.kept)
            grad_weight = torch.bmm(grad[:, asked], part.value[:, seen].transpose(1, 2))
            if heads.dropout:
                mask = next(self.kept)
                used = weight * mask
                grad_weight.mul_(mask)
            if self.plan.is_plain_causal(weight):
                scores = passes.causal_softmax_backward_(grad_weight, weight, **self.plan.seen(block))
            else:
                scores = torch.ops.aten._softmax_backward_data(grad_weight, weight, -1, weight.dtype)
            if self.grad_bias is not None:
                apart = _apart(scores, heads)
                self.grad_bias[:, block.first : block.last, seen] += (
                    apart.sum(dim=0) if len(apart) > 1 else apart[0]
                )
            torch.bmm(scores, part.key[:, seen], out=to.query[:, asked])
            if whole and block.low == 0 and block.high == part.key_length:
                torch.bmm(scores.transpose(1, 2), part.query[:, asked], out=to.key)
                torch.bmm(used.transpose(1, 2), grad[:, asked], out=to.value)
                continue
            to_key = torch.bmm(scores.transpose(1, 2), part.query[:, asked])
            to_value = torch.bmm(used.transpose(1, 2), grad[:, asked])
            if whole:
                to.key.zero_()
                to.value.zero_()
                whole = False
            to.key[:, seen] += to_key
            to.value[:, seen] += to_value


def attend(sources: Sequence[Tensor], layout: Layout, heads: Heads, *, bias: Tensor | None = None) -> Tensor:
    """To T x H D. `sources`: one T x (H + 2 K) D, queries, keys and values side by side, when rows look at
    themselves; queries T x H D, then keys and values side by side, when they look at other rows. `bias`: H
    x L x L for the layout's longest, in the type of the sources, laid over each row's scores, for heads
    without groups."""
    rows = [source.reshape(-1, heads.width) for source in sources]
    source = rows[0] if len(rows) == 1 else torch.cat(rows)
    # apply() is untyped in torch's stubs.
    return cast("Tensor", _Attention.apply(source, bias, layout, heads))  # pyright: ignore[reportUnknownMemberType]


def with_dropout(heads: Heads, dropout: float) -> Heads:
    return heads if dropout == heads.dropout else replace(heads, dropout=dropout)
