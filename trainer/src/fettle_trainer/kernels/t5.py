"""T5 and mT5: both stacks run on rows laid end to end, embedding to last norm, whatever was padded around
them.

No scale in the scores; a learned bias of the distance, one for all layers of a stack, is laid over them
(Raffel et al. 2020, section 2.1). The stream between layers is fp32, products run in the type of the
compute.

Legend: B rows, L longest row, T tokens of all rows, E width, H heads.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..packing import current_lengths, current_target_lengths
from .attention import attend, with_dropout
from .encoder import Rows
from .heads import Heads
from .layout import Layout
from .norm import Norm
from .projection import Projection

KINDS = ("t5", "mt5")


class _Attention:
    """Reads the stream, returns what is added to it."""

    def __init__(self, layer: Any, own: Any, dtype: torch.dtype) -> None:
        self._norm = Norm(layer.layer_norm, dtype)
        self._dropout = cast("nn.Dropout", layer.dropout)
        self._inside = float(own.dropout)
        self._heads = heads_of(own)
        self._out = Projection([own.o], dtype)

    @property
    def heads(self) -> Heads:
        return with_dropout(self._heads, self._inside if self._dropout.training else 0.0)


class _SelfAttention(_Attention):
    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        own = layer.SelfAttention
        super().__init__(layer, own, dtype)
        self._query_key_value = Projection([own.q, own.k, own.v], dtype)
        self.projections = [self._query_key_value, self._out]

    def __call__(self, x_TE: Tensor, layout: Layout, bias: Tensor) -> Tensor:
        seen = attend([self._query_key_value(self._norm(x_TE))], layout, self.heads, bias=bias)
        return self._dropout(self._out(seen))


class _CrossAttention(_Attention):
    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        own = layer.EncDecAttention
        super().__init__(layer, own, dtype)
        self._query = Projection([own.q], dtype)
        self._key_value = Projection([own.k, own.v], dtype)
        self.projections = [self._query, self._key_value, self._out]

    def __call__(self, x_TE: Tensor, source: Tensor, layout: Layout) -> Tensor:
        seen = attend([self._query(self._norm(x_TE)), self._key_value(source)], layout, self.heads)
        return self._dropout(self._out(seen))


class _FeedForward:
    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        dense = layer.DenseReluDense
        self._norm = Norm(layer.layer_norm, dtype)
        names = ("wi_0", "wi_1") if hasattr(dense, "wi_0") else ("wi",)
        self._wide = Projection([getattr(dense, name) for name in names], dtype, apart=True)
        self._narrow = Projection([dense.wo], dtype)
        self._activation, self._inside, self._dropout = dense.act, dense.dropout, layer.dropout
        self.projections = [self._wide, self._narrow]

    def __call__(self, x_TE: Tensor) -> Tensor:
        normed = self._norm(x_TE)
        wide, *rest = self._wide.each(normed)
        wide = self._activation(wide)
        for other in rest:
            wide = wide * other
        return self._dropout(self._narrow(self._inside(wide)))


class _Stack:
    """Stands in for the forward of a stack."""

    def __init__(self, stack: Any, dtype: torch.dtype) -> None:
        self._stack, self._dtype = stack, dtype
        self._first = stack.block[0].layer[0].SelfAttention
        self._heads = heads_of(self._first)
        self._selves = [_SelfAttention(block.layer[0], dtype) for block in stack.block]
        self._crosses = [_CrossAttention(block.layer[1], dtype) for block in stack.block if block.is_decoder]
        self._feeds = [_FeedForward(block.layer[-1], dtype) for block in stack.block]
        self._last = Norm(stack.final_layer_norm, torch.float32)
        layers = [*self._selves, *self._crosses, *self._feeds]
        self.projections = [one for layer in layers for one in layer.projections]

    def __call__(self, *, input_ids: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output

        lengths = current_target_lengths() if self._crosses else current_lengths()
        with torch.autocast(input_ids.device.type, enabled=False):
            rows = Rows(lengths, input_ids.shape[1])
            ids_T = input_ids.flatten().index_select(0, rows.places_T)
            source = None if encoder_hidden_states is None else self._source(encoder_hidden_states)
            padded = rows.padded(self._run(ids_T, rows.lengths, source))
        return cast("Any", Output)(last_hidden_state=padded.view(*input_ids.shape, -1))

    def _source(self, padded_BLE: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens of the rows read, in the type of the products, and their lengths."""
        rows = Rows(current_lengths(), padded_BLE.shape[1])
        return padded_BLE.flatten(0, 1).index_select(0, rows.places_T).to(self._dtype), rows.lengths

    def _run(
        self, ids_T: Tensor, lengths: tuple[int, ...], source: tuple[Tensor, tuple[int, ...]] | None
    ) -> Tensor:
        x_TE = self._stack.dropout(self._stack.embed_tokens(ids_T).float())
        layout = Layout.of_self(lengths, self._heads)
        across = None if source is None else Layout.of_other(*_paired(lengths, source[1]), self._heads)
        bias = self._bias(layout.longest)
        for index, attention in enumerate(self._selves):
            x_TE = x_TE + attention(x_TE, layout, bias)
            if across is not None and source is not None:
                x_TE = x_TE + self._crosses[index](x_TE, source[0], across)
            x_TE = x_TE + self._feeds[index](x_TE)
        return self._stack.dropout(self._last(x_TE))

    def _bias(self, longest: int) -> Tensor:
        """H x L x L; a decoder's hides what comes later."""
        bias = cast("Tensor", self._first.compute_bias(longest, longest))[0]
        if self._crosses:
            later = torch.ones(longest, longest, dtype=torch.bool).triu_(1)
            bias = bias.masked_fill(later, float("-inf"))
        return bias.to(self._dtype)


def _paired(lengths: tuple[int, ...], sources: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Either may end with a filler: it looks at nothing, or is looked at by nobody."""
    longest = max(len(lengths), len(sources))
    return (*lengths, *(0,) * (longest - len(lengths))), (*sources, *(0,) * (longest - len(sources)))


def heads_of(attention: Any) -> Heads:
    count = int(attention.n_heads)
    return Heads(query=count, key=count, width=int(attention.key_value_proj_dim), causal=False, scale=1.0)


def fits(model: Any) -> bool:
    """Whether every part of the stacks is one that is written here."""
    config = model.config
    return (
        config.model_type in KINDS and config.is_encoder_decoder and model.get_output_embeddings() is not None
    )


def put_in(model: Any, dtype: torch.dtype) -> list[Projection]:
    """Replaces the forward of both stacks. LoRA must be in place already."""
    projections: list[Projection] = []
    for stack in (model.encoder, model.decoder):
        fast = _Stack(stack, dtype)
        stack.forward = fast
        projections += fast.projections
    return projections
