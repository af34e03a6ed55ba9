"""Embedding lookup whose gradient is added where it belongs, row by row, not as a whole table of zeros.

Legend: V vocabulary, E width, T tokens.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn


class Embedding:
    """Stands in for the forward of modules that share one trained weight. `is_tied`: to the output head,
    whose gradient is there before."""

    def __init__(self, module: nn.Embedding, *, is_tied: bool) -> None:
        self._weight = module.weight
        self._padding = module.padding_idx
        self._is_tied = is_tied
        self._gradient: Tensor | None = None
        self._touched: list[Tensor] = []
        self._is_fresh = True
        # What makes the output part of the graph, as the weight itself is left out of it.
        self._anchor = torch.zeros((), requires_grad=True)

    def __call__(self, ids: Tensor) -> Tensor:
        # apply() is untyped in torch's stubs.
        return cast("Tensor", _Lookup.apply(self._anchor, ids, self))  # pyright: ignore[reportUnknownMemberType]

    def rows(self, ids: Tensor) -> Tensor:
        return self._weight.detach()[ids]

    def refresh(self) -> None:
        """Before the first micro-batch of an optimiser step: gradients begin anew."""
        self._is_fresh = True

    def add(self, ids_T: Tensor, grad_TE: Tensor) -> None:
        if self._padding is not None:
            grad_TE = grad_TE.masked_fill((ids_T == self._padding)[:, None], 0)
        self._table().index_add_(0, ids_T, grad_TE.to(self._weight.dtype))
        self._touched.append(ids_T)

    def _table(self) -> Tensor:
        if self._is_tied and self._weight.grad is not None:
            return self._weight.grad
        if self._gradient is None:
            self._gradient = torch.zeros_like(self._weight)
        if self._is_fresh:
            for ids in self._touched:
                self._gradient[ids] = 0
            self._touched, self._is_fresh = [], False
        self._weight.grad = self._gradient
        return self._gradient


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, ids: Tensor, embedding: Embedding) -> Tensor:
        ctx.ids, ctx.embedding = ids, embedding
        return embedding.rows(ids)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ids_T = cast("Tensor", ctx.ids).flatten()
        embedding = cast("Embedding", ctx.embedding)
        embedding.add(ids_T, gradients[0].reshape(len(ids_T), -1))
        return None, None, None


def put_in(model: Any) -> list[Embedding]:
    """For each trained table of token ids: one for all modules that share its weight."""
    head = model.get_output_embeddings()
    size = int(model.config.get_text_config().vocab_size)
    made: dict[int, Embedding] = {}
    for module in cast("list[nn.Module]", list(model.modules())):
        if type(module) is not nn.Embedding or len(module.weight) < size or not _is_plain(module):
            continue
        is_tied = head is not None and head.weight is module.weight
        found = made.setdefault(id(module.weight), Embedding(module, is_tied=is_tied))
        cast("Any", module).forward = found
    return list(made.values())


def _is_plain(module: nn.Embedding) -> bool:
    return module.weight.requires_grad and module.max_norm is None and not module.scale_grad_by_freq
