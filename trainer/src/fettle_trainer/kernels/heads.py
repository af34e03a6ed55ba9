"""What attention knows of its heads, and one row's share of the tensors."""

from dataclasses import dataclass

from torch import Tensor


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


@dataclass(frozen=True, slots=True)
class Part:
    """N rows of one length: queries (N K) x (L G) x D, keys and values (N K) x L x D.
    `mask`: N x 1 x 1 x L."""

    query: Tensor
    key: Tensor
    value: Tensor
    group: int
    mask: Tensor | None = None

    @property
    def length(self) -> int:
        return self.query.shape[1] // self.group

    @property
    def key_length(self) -> int:
        return self.key.shape[1]
