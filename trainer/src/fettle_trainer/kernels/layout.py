"""Where the heads of each row go, so that rows of like length share their products.

Rows are cut out of the tokens laid end to end and filled up to sizes that come again: a product of a new
size costs a millisecond of preparation, six times a row and step. What fills a row up repeats its last
token; no query of the row sees it, and its own answer and gradient go nowhere.

Legend: T tokens of all rows, H query heads, K key heads, G = H / K, L a row's size, D head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .heads import Heads

SHORT = 128
LONGEST_PLAIN = 1024
# Sizes of rows are multiples of this.
_TOGETHER = 16

Lengths = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Rows that lie side by side and are filled up to one size: one product for all of them."""

    count: int
    length: int
    key_length: int
    # N x 1 x 1 x L of 0 and minus infinity, where a query would see what fills its row up.
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Slots:
    """Head rows (token * heads + head) of each run in turn: K x (L G) a row. `real` are not filled up."""

    order: Tensor
    real: Tensor

    def inverse(self, order: Tensor | None = None) -> Tensor:
        """The slot of each head row."""
        order = self.order if order is None else order
        inverse = torch.empty(int(self.real.sum()), dtype=torch.long)
        inverse[order[self.real]] = self.real.nonzero()[:, 0]
        return inverse


class Layout:
    """Query rows: K x (L G) x D for each row in turn, then keys, then values, K x L x D each. `order` says
    from where each comes, `inverse` where each went; `turn` are the tables (cos and sin) that queries and
    keys are turned by. `unread`: query slots that fill rows up."""

    def __init__(self, lengths: Lengths, key_lengths: Lengths, heads: Heads, *, joined: bool) -> None:
        self.tokens, self._heads = sum(lengths), heads
        self.runs = list(_runs(lengths, key_lengths, heads))
        sizes = [(run.count, run.length) for run in self.runs]
        key_sizes = [(run.count, run.key_length) for run in self.runs]
        queries = _slots(lengths, sizes, keys=heads.key, group=heads.group)
        keys = _slots(key_lengths, key_sizes, keys=heads.key, group=1)
        self.query_rows, self._key_rows = queries.order, keys.order
        self.unread = (~queries.real).nonzero()[:, 0]
        self.query_inverse = queries.inverse()
        from_query, from_key = queries.order, keys.order
        if joined:
            per_token = heads.query + 2 * heads.key
            from_query = from_query // heads.query * per_token + from_query % heads.query
            from_key = from_key // heads.key * per_token + from_key % heads.key + heads.query
        else:
            from_key = from_key // heads.key * (2 * heads.key) + from_key % heads.key
            from_key += self.tokens * heads.query
        self.order = torch.cat([from_query, from_key, from_key + heads.key])
        self.inverse = _Slots(self.order, torch.cat([queries.real, keys.real, keys.real])).inverse()
        self.sizes = [len(from_query), len(from_key), len(from_key)]
        self.turn: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of_self(cls, lengths: Lengths, heads: Heads) -> "Layout":
        """Tokens T, each with its query, key and value heads side by side."""
        return cls(lengths, lengths, heads, joined=True)

    @classmethod
    def of_other(cls, lengths: Lengths, key_lengths: Lengths, heads: Heads) -> "Layout":
        """All query heads of the asking rows, then key and value heads side by side of the rows asked."""
        return cls(lengths, key_lengths, heads, joined=False)

    @property
    def longest(self) -> int:
        """Size of the longest row."""
        return max(run.length for run in self.runs)

    def turned(self, cos_TD: Tensor, sin_TD: Tensor, dtype: torch.dtype) -> "Layout":
        """Rotary positions; the score's scale is folded into the tables of the queries."""
        heads, half = self._heads, cos_TD.shape[1] // 2
        sin_TD = torch.cat([-sin_TD[:, :half], sin_TD[:, half:]], dim=-1)
        places = torch.cat([self.query_rows // heads.query, self._key_rows // heads.key])
        tables = [table.float().index_select(0, places) for table in (cos_TD, sin_TD)]
        for table in tables:
            table[: len(self.query_rows)] *= heads.scale
        self.turn = (tables[0].to(dtype), tables[1].to(dtype))
        return self


def _size(length: int) -> int:
    """Rows that flash attention takes are left as they are."""
    return length if length > LONGEST_PLAIN else -(-length // _TOGETHER) * _TOGETHER


def _joins(length: int, size: int) -> bool:
    """Little of a row is filling; nothing joins nothing."""
    return length == size or (0 < length <= size and _size(length) * 8 >= size * 7)


def _runs(lengths: Lengths, key_lengths: Lengths, heads: Heads) -> Iterator[Run]:
    first = 0
    while first < len(lengths):
        size, key_size = _size(lengths[first]), _size(key_lengths[first])
        last = first + 1
        # A long row alone is work enough, and its weights are much to hold.
        while (
            size <= SHORT
            and last < len(lengths)
            and _joins(lengths[last], size)
            and _joins(key_lengths[last], key_size)
        ):
            last += 1
        inside = key_lengths[first:last]
        yield Run(last - first, size, key_size, None if heads.causal else _mask(inside, key_size))
        first = last


def _mask(lengths: Lengths, size: int) -> Tensor | None:
    """A causal query never sees what comes after its row."""
    if min(lengths) == size:
        return None
    hidden = torch.arange(size)[None] >= torch.tensor(lengths)[:, None]
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None, None]


def _slots(lengths: Lengths, sizes: list[tuple[int, int]], *, keys: int, group: int) -> _Slots:
    orders: list[Tensor] = []
    reals: list[Tensor] = []
    row = start = 0
    for count, size in sizes:
        inside = torch.tensor(lengths[row : row + count])
        starts = start + inside.cumsum(0) - inside
        place = torch.arange(size)[None]
        token = starts[:, None] + torch.minimum(place, inside[:, None] - 1)
        head = torch.arange(keys * group).view(1, keys, 1, group)
        order = token[:, None, :, None] * (keys * group) + head
        orders.append(order.flatten())
        reals.append((place < inside[:, None])[:, None, :, None].expand(order.shape).flatten())
        row, start = row + count, start + int(inside.sum())
    return _Slots(torch.cat(orders), torch.cat(reals))
