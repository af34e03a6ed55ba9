"""Keys and values of a batch whose rows come and go.

Rows end at the same position and begin at different ones: shorter rows are padded on the left, and the
attention mask hides the padding. Buffers are allocated ahead, so that a token step writes and does not copy;
only joining and leaving copies. B rows, H heads, T positions, D head size.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# Positions allocated beyond what is needed now: one copy of the buffer in so many token steps.
SPARE_POSITIONS = 64


class RowLayer(CacheLayerMixin):
    """One layer: `keys` and `values` are B x H x capacity x D; the first `length` positions are in use.

    Sliding-window models keep all positions too; their window is in the mask.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self) -> None:
        cast(Any, super()).__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_empty((*key_states.shape[:2], 0, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends B x H x t x D states; returns all keys and values in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self._keys().shape[2]:
            self.keys = _moved(self._keys(), self.length, end + SPARE_POSITIONS)
            self.values = _moved(self._values(), self.length, end + SPARE_POSITIONS)
        self._keys()[:, :, self.length : end] = key_states
        self._values()[:, :, self.length : end] = value_states
        self.length = end
        return self._keys()[:, :, :end], self._values()[:, :, :end]

    def join(self, other: "RowLayer") -> None:
        """Adds the rows of `other` below; the shorter of the two is shifted to end where the longer ends."""
        length = max(self.length, other.length)
        self.keys = _stacked((self._keys(), self.length), (other._keys(), other.length), length)
        self.values = _stacked((self._values(), self.length), (other._values(), other.length), length)
        self.length = length

    def keep(self, rows: Tensor, first_position: int) -> None:
        """Keeps these rows, from `first_position` on."""
        self.keys = self._keys()[rows, :, first_position:]
        self.values = self._values()[rows, :, first_position:]
        self.length -= first_position

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def bytes_per_position(self) -> int:
        """Bytes that one position of one row takes in this layer."""
        return sum(
            states.shape[1] * states.shape[3] * states.element_size()
            for states in (self._keys(), self._values())
        )

    def _keys(self) -> Tensor:
        return cast(Tensor, self.keys)

    def _values(self) -> Tensor:
        return cast(Tensor, self.values)


class RowCache(Cache):
    """All layers of a batch, with the left padding of each row."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RowLayer)
        self.pads: list[int] = [0]

    @classmethod
    def of_one_row(cls, before: Sequence[tuple[Tensor, Tensor]] = ()) -> "RowCache":
        """A row that begins with these keys and values of each layer, 1 x H x T x D."""
        cache = cls()
        for layer, (keys, values) in enumerate(before):
            cast(Any, cache).update(keys, values, layer)
        return cache

    @property
    def length(self) -> int:
        return self.get_seq_length()

    def attention_mask(self, num_new: int, device: torch.device) -> Tensor:
        """B x (T + num_new) mask for the next forward pass: 0 is padding."""
        positions = torch.arange(self.length + num_new, device=device)
        return (positions[None, :] >= torch.tensor(self.pads, device=device)[:, None]).long()

    def position_ids(self, num_new: int, device: torch.device) -> Tensor:
        """B x num_new: each row counts from its own first token."""
        positions = torch.arange(self.length, self.length + num_new, device=device)
        return positions[None, :] - torch.tensor(self.pads, device=device)[:, None]

    def join(self, other: "RowCache") -> None:
        length = max(self.length, other.length)
        pads = [pad + length - cache.length for cache in (self, other) for pad in cache.pads]
        for mine, theirs in zip(self._rows(), other._rows(), strict=True):
            mine.join(theirs)
        self.pads = pads

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows and cuts the padding that all of them share. At least one row."""
        pads = [self.pads[row] for row in rows]
        shared = min(pads)
        for layer in self._rows():
            layer.keep(torch.tensor(rows, device=layer._keys().device), shared)  # pyright: ignore[reportPrivateUsage]
        self.pads = [pad - shared for pad in pads]

    def bytes_per_position(self) -> int:
        return sum(layer.bytes_per_position() for layer in self._rows())

    def _rows(self) -> list[RowLayer]:
        return cast(list[RowLayer], self.layers)


def _moved(states: Tensor, length: int, capacity: int) -> Tensor:
    buffer = states.new_empty((*states.shape[:2], capacity, states.shape[3]))
    buffer[:, :, :length] = states[:, :, :length]
    return buffer


def _stacked(upper: tuple[Tensor, int], lower: tuple[Tensor, int], length: int) -> Tensor:
    num_rows = upper[0].shape[0] + lower[0].shape[0]
    # Zeros, not empty: padding is hidden by the mask, but 0 x NaN from stray memory would not be.
    shape = (num_rows, upper[0].shape[1], length + SPARE_POSITIONS, upper[0].shape[3])
    buffer = upper[0].new_zeros(shape)
    buffer[: upper[0].shape[0], :, length - upper[1] : length] = upper[0][:, :, : upper[1]]
    buffer[upper[0].shape[0] :, :, length - lower[1] : length] = lower[0][:, :, : lower[1]]
    return buffer
