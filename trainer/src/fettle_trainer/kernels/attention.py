"""Attention of rows laid end to end, each row on its own: whole products for short rows, blocks for long ones.

PyTorch's attention for CPUs makes one call a row, and its backward pass is several times slower on short rows than
the plain products it stands for. Here each row is scores, softmax and a weighted sum (Vaswani et al. 2017, equation
1), with query heads that share a key head in one product. A causal row is cut into blocks of queries, and no block
looks at keys after its last query. Weights are kept for the backward pass; rows longer than `LONGEST_PLAIN` go to
PyTorch's flash attention, which keeps none.

Legend: T tokens of all rows, H query heads, K key heads, G = H / K, L tokens of one row, D head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

QUERIES_AT_ONCE = 160
LONGEST_PLAIN = 1024


@dataclass(frozen=True, slots=True)
class Heads:
    """`window`: tokens a query sees, itself included; 0 is all."""

    query: int
    key: int
    width: int
    causal: bool
    scale: float
    window: int = 0
    dropout: float = 0.0

    @property
    def group(self) -> int:
        return self.query // self.key

    def with_dropout(self, dropout: float) -> "Heads":
        return self if dropout == self.dropout else replace(self, dropout=dropout)


class Layout:
    """Where head rows of a micro-batch go, so that each row's queries, keys and values lie together.

    Query rows: K x (L G) x D for each row in turn, then keys, then values, K x L x D each. `cos` and `sin` (T x D)
    turn queries and keys; the score's scale is folded into those of the queries.
    """

    def __init__(
        self, lengths: tuple[int, ...], heads: Heads, turn: tuple[Tensor, Tensor] | None, dtype: torch.dtype
    ) -> None:
        self.lengths = lengths
        tokens = sum(lengths)
        queries = _order(lengths, heads.key, heads.group)
        keys = _order(lengths, heads.key, 1)
        per_token = heads.query + 2 * heads.key
        token, head = queries // heads.query, queries % heads.query
        key_token, key_head = keys // heads.key, keys % heads.key
        self.query_rows = queries
        self.order = torch.cat(
            [
                token * per_token + head,
                key_token * per_token + heads.query + key_head,
                key_token * per_token + heads.query + heads.key + key_head,
            ]
        )
        self.inverse = _inverse(self.order)
        self.query_inverse = _inverse(queries)
        self.sizes = [tokens * heads.query, tokens * heads.key, tokens * heads.key]
        self.turn: tuple[Tensor, Tensor] | None = None
        if turn is not None:
            cos_TD, sin_TD = (table.float() for table in turn)
            half = heads.width // 2
            sin_TD = torch.cat([-sin_TD[:, :half], sin_TD[:, half:]], dim=-1)
            places = torch.cat([token, key_token])
            tables = [table.index_select(0, places) for table in (cos_TD, sin_TD)]
            for table in tables:
                table[: len(token)] *= heads.scale
            self.turn = (tables[0].to(dtype), tables[1].to(dtype))


def _order(lengths: tuple[int, ...], keys: int, group: int) -> Tensor:
    """Head rows (token * heads + head), key head by key head within a row of tokens."""
    parts: list[Tensor] = []
    start = 0
    for length in lengths:
        token = torch.arange(start, start + length)[None, :, None]
        key = torch.arange(keys)[:, None, None]
        member = torch.arange(group)[None, None, :]
        parts.append((token * (keys * group) + key * group + member).flatten())
        start += length
    return torch.cat(parts)


def _inverse(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return inverse


@lru_cache(maxsize=64)
def _mask(queries: int, keys: int, first: int, group: int, window: int, dtype: torch.dtype) -> Tensor | None:
    """(queries x group) x keys of 0 and minus infinity; `first` is the first query's place among the keys.
    None when every query sees every key."""
    place = torch.arange(first, first + queries)[:, None] - torch.arange(keys)[None]
    hidden = place < 0
    if window:
        hidden |= place >= window
    if not bool(hidden.any()):
        return None
    mask = torch.zeros(queries, keys, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return mask.repeat_interleave(group, dim=0)


@dataclass(frozen=True, slots=True)
class Block:
    """Queries `first..last` of a row against its keys `low..high`."""

    first: int
    last: int
    low: int
    high: int


def blocks(length: int, heads: Heads) -> Iterator[Block]:
    if not heads.causal:
        yield Block(0, length, 0, length)
        return
    count = -(-length // QUERIES_AT_ONCE)
    size = -(-length // count)
    for first in range(0, length, size):
        last = min(length, first + size)
        yield Block(first, last, max(0, first - heads.window + 1) if heads.window else 0, last)


def weights(query: Tensor, key: Tensor, added: Tensor | None) -> Tensor:
    """Softmax of scores, `query` scaled before. `added` is laid over the scores: a mask, a position's bias."""
    scores = torch.bmm(query, key.transpose(1, 2))
    if added is not None:
        scores += added
    return torch.softmax(scores, dim=-1)


def scores_gradient(grad: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Of the scores, from the gradient of the weighted sum."""
    return torch._softmax_backward_data(torch.bmm(grad, value.transpose(1, 2)), weight, -1, weight.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: Layout, heads: Heads) -> Tensor:
        """T x (H + 2 K) D to T x H D."""
        rows = qkv.view(-1, heads.width).index_select(0, layout.order)
        turned = rows[: layout.sizes[0] + layout.sizes[1]]
        if layout.turn is not None:
            cos, sin = layout.turn
            swapped = turned.roll(heads.width // 2, dims=-1)
            turned.mul_(cos).addcmul_(swapped, sin)
        else:
            rows[: layout.sizes[0]] *= heads.scale
        out = torch.empty_like(rows[: layout.sizes[0]])
        ctx.layout, ctx.heads = layout, heads
        kept = _forward_rows(rows, out, layout, heads)
        ctx.save_for_backward(rows, *kept)
        return out.index_select(0, layout.query_inverse).view(qkv.shape[0], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        layout, heads = cast("Layout", ctx.layout), cast("Heads", ctx.heads)
        rows, *kept = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        grad = gradients[0]
        grad_out = grad.reshape(-1, heads.width).index_select(0, layout.query_rows)
        grad_rows = torch.empty_like(rows)
        _backward_rows(rows, kept, (grad_out, grad_rows), layout, heads)
        if layout.turn is not None:
            cos, sin = layout.turn
            turned = grad_rows[: layout.sizes[0] + layout.sizes[1]]
            swapped = (turned * sin).roll(heads.width // 2, dims=-1)
            turned.mul_(cos).add_(swapped)
        else:
            grad_rows[: layout.sizes[0]] *= heads.scale
        return grad_rows.index_select(0, layout.inverse).view(grad.shape[0], -1), None, None


def _rows_of(rows: Tensor, layout: Layout, heads: Heads) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Length, queries K x (L G) x D, keys and values K x L x D of each row: views."""
    queries, keys, values = rows.split(layout.sizes)
    start = 0
    for length in layout.lengths:
        end = start + length
        yield (
            length,
            queries[start * heads.query : end * heads.query].view(heads.key, -1, heads.width),
            keys[start * heads.key : end * heads.key].view(heads.key, length, heads.width),
            values[start * heads.key : end * heads.key].view(heads.key, length, heads.width),
        )
        start = end


def _forward_rows(rows: Tensor, out: Tensor, layout: Layout, heads: Heads) -> list[Tensor]:
    """Fills `out`; returns the weights to keep, with dropout's mask where there is dropout."""
    kept: list[Tensor] = []
    start = 0
    for length, query, key, value in _rows_of(rows, layout, heads):
        end = start + length * heads.query
        target = out[start:end].view(query.shape)
        start = end
        if length > LONGEST_PLAIN:
            kept += _flash(query, key, value, target, heads)
            continue
        for block in blocks(length, heads):
            some = slice(block.first * heads.group, block.last * heads.group)
            mask = _block_mask(block, heads, rows.dtype)
            weight = weights(query[:, some], key[:, block.low : block.high], mask)
            kept.append(weight)
            if heads.dropout:
                mask = torch.rand_like(weight, dtype=torch.float32).ge_(heads.dropout).to(weight.dtype)
                kept.append(mask.div_(1 - heads.dropout))
                weight = weight * kept[-1]
            target[:, some] = torch.bmm(weight, value[:, block.low : block.high])
    return kept


def _block_mask(block: Block, heads: Heads, dtype: torch.dtype) -> Tensor | None:
    if not heads.causal:
        return None
    size = block.last - block.first
    return _mask(size, block.high - block.low, block.first - block.low, heads.group, heads.window, dtype)


def _backward_rows(
    rows: Tensor, kept: list[Tensor], gradients: tuple[Tensor, Tensor], layout: Layout, heads: Heads
) -> None:
    """Fills the second of `gradients`, of the rows, from the first, of the output in the order of the queries."""
    grad_out, grad_rows = gradients
    left = iter(kept)
    start = 0
    for (length, query, key, value), (_, grad_query, grad_key, grad_value) in zip(
        _rows_of(rows, layout, heads), _rows_of(grad_rows, layout, heads), strict=True
    ):
        end = start + length * heads.query
        grad = grad_out[start:end].view(query.shape)
        start = end
        if length > LONGEST_PLAIN:
            _flash_backward(left, (query, key, value), grad, (grad_query, grad_key, grad_value), heads)
            continue
        whole = True
        for block in blocks(length, heads):
            some = slice(block.first * heads.group, block.last * heads.group)
            seen = slice(block.low, block.high)
            weight = used = next(left)
            part = grad[:, some]
            if heads.dropout:
                mask = next(left)
                used = weight * mask
                back = torch.bmm(part, value[:, seen].transpose(1, 2)).mul_(mask)
                scores = torch._softmax_backward_data(back, weight, -1, weight.dtype)
            else:
                scores = scores_gradient(part, value[:, seen], weight)
            torch.bmm(scores, key[:, seen], out=grad_query[:, some])
            to_key = torch.bmm(scores.transpose(1, 2), query[:, some])
            to_value = torch.bmm(used.transpose(1, 2), part)
            if whole and block.high == length and block.low == 0:
                grad_key.copy_(to_key)
                grad_value.copy_(to_value)
                continue
            if whole:
                grad_key.zero_()
                grad_value.zero_()
                whole = False
            grad_key[:, seen] += to_key
            grad_value[:, seen] += to_value


def _spread(query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """1 x H x L x D each, as PyTorch's attention asks."""
    length = key.shape[1]
    apart = query.view(heads.key, length, heads.group, heads.width).transpose(1, 2)
    return (
        apart.reshape(1, heads.query, length, heads.width),
        key.repeat_interleave(heads.group, dim=0)[None],
        value.repeat_interleave(heads.group, dim=0)[None],
    )


def _long_mask(length: int, heads: Heads, dtype: torch.dtype) -> Tensor | None:
    return (
        None
        if not heads.window or heads.window >= length
        else _mask(length, length, 0, 1, heads.window, dtype)
    )


def _flash(query: Tensor, key: Tensor, value: Tensor, target: Tensor, heads: Heads) -> list[Tensor]:
    length = key.shape[1]
    mask = _long_mask(length, heads, query.dtype)
    out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_spread(query, key, value, heads), 0.0, heads.causal and mask is None, attn_mask=mask, scale=1.0
    )
    joined = out.view(heads.key, heads.group, length, heads.width).transpose(1, 2)
    target.copy_(joined.reshape(target.shape))
    return [out, normaliser]


def _flash_backward(
    kept: Iterator[Tensor],
    inputs: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    targets: tuple[Tensor, Tensor, Tensor],
    heads: Heads,
) -> None:
    length = inputs[1].shape[1]
    out, normaliser = next(kept), next(kept)
    spread = _spread(*inputs, heads)
    mask = _long_mask(length, heads, grad.dtype)
    apart = grad.view(heads.key, length, heads.group, heads.width).transpose(1, 2)
    to_query, to_key, to_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        apart.reshape(out.shape),
        *spread,
        out,
        normaliser,
        0.0,
        heads.causal and mask is None,
        attn_mask=mask,
        scale=1.0,
    )
    grouped = (heads.key, heads.group, length, heads.width)
    targets[0].copy_(to_query.view(grouped).transpose(1, 2).reshape(targets[0].shape))
    targets[1].copy_(to_key.view(grouped).sum(dim=1))
    targets[2].copy_(to_value.view(grouped).sum(dim=1))


def attend(qkv: Tensor, layout: Layout, heads: Heads) -> Tensor:
    """T x (H + 2 K) D, queries, keys and values side by side, to T x H D."""
    # apply() is untyped in torch's stubs.
    return cast("Tensor", _Attention.apply(qkv, layout, heads))  # pyright: ignore[reportUnknownMemberType]
