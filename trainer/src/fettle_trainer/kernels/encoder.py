"""Encoders of the BERT kind: the stack of layers runs on rows laid end to end, whatever was padded around it.

Embeddings before and heads after stay the model's own and see padded rows. The stream between layers is
fp32, products run in the type of the compute. Legend: B rows, L longest row, T tokens of all rows, E width.
"""

from typing import Any, cast

import torch
from torch import Tensor

from ..packing import current_lengths, current_reads, filler
from .attention import attend, with_dropout
from .heads import Heads
from .layout import Layout
from .norm import CentredNorm
from .projection import Projection

KINDS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
# Modules that read nothing of a row but its first token.
_READ_FIRST_TOKENS = (
    "BertPooler",
    *(f"{name}ClassificationHead" for name in ("Roberta", "XLMRoberta", "Camembert", "Electra")),
)


class _Layer:
    def __init__(self, layer: Any, heads: Heads, dtype: torch.dtype) -> None:
        own, out = layer.attention.self, layer.attention.output
        self._heads, self._dtype = heads, dtype
        self._query_key_value = Projection([own.query, own.key, own.value], dtype)
        self._out = Projection([out.dense], dtype)
        self._wide = Projection([layer.intermediate.dense], dtype)
        self._narrow = Projection([layer.output.dense], dtype)
        self.projections = [self._query_key_value, self._out, self._wide, self._narrow]
        self._activation = layer.intermediate.intermediate_act_fn
        self._between, self._after = CentredNorm(out.LayerNorm), CentredNorm(layer.output.LayerNorm)
        self._dropouts = (own.dropout, out.dropout, layer.output.dropout)

    def __call__(self, x_TE: Tensor, layout: Layout, reads: Tensor | None = None) -> Tensor:
        """`reads`: the tokens to answer, all unless said."""
        inside, behind, last = self._dropouts
        heads = with_dropout(self._heads, inside.p if inside.training else 0.0)
        seen = attend([self._query_key_value(x_TE.to(self._dtype))], layout, heads)
        if reads is not None:
            x_TE, seen = x_TE.index_select(0, reads), seen.index_select(0, reads)
        x_TE = self._between(x_TE + behind(self._out(seen)))
        wide = self._activation(self._wide(x_TE.to(self._dtype)))
        return self._after(x_TE + last(self._narrow(wide)))


class _Stack:
    """Stands in for the forward of the model's encoder."""

    def __init__(self, encoder: Any, config: Any, dtype: torch.dtype) -> None:
        width = int(config.hidden_size) // int(config.num_attention_heads)
        count = int(config.num_attention_heads)
        self._heads = Heads(query=count, key=count, width=width, causal=False, scale=width**-0.5)
        self._layers = [_Layer(layer, self._heads, dtype) for layer in encoder.layer]
        self.projections = [one for layer in self._layers for one in layer.projections]
        self._dtype = dtype

    def __call__(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output

        lengths = current_lengths()
        with torch.autocast(hidden_states.device.type, enabled=False):
            rows = Rows(lengths, hidden_states.shape[1])
            x_TE = hidden_states.float().flatten(0, 1).index_select(0, rows.places_T)
            layout = Layout.of_self(rows.lengths, self._heads)
            for layer in self._layers[:-1]:
                x_TE = layer(x_TE, layout)
            reads = current_reads()
            x_TE = self._layers[-1](x_TE, layout, reads)
            # Read alone are the first tokens of the rows, and B x 1 x E has them where B x L x E has them.
            whole = x_TE[:, None] if reads is not None else rows.padded(x_TE).view(hidden_states.shape)
        return cast("Any", Output)(last_hidden_state=whole)


class Rows:
    """Padded rows laid end to end, and back. `lengths` and `places_T` (in the flattened B x L, padding on the
    right) end with a filler."""

    def __init__(self, lengths: tuple[int, ...], longest: int) -> None:
        places = [torch.arange(length) + row * longest for row, length in enumerate(lengths)]
        self._tokens = sum(lengths)
        self._size = len(lengths) * longest
        fill = filler(self._tokens)
        self.lengths = (*lengths, fill) if fill else lengths
        self.places_T = torch.cat([*places, torch.zeros(fill, dtype=torch.long)])

    def padded(self, x_TE: Tensor) -> Tensor:
        """(B L) x E, zero where there is padding."""
        places = self.places_T[: self._tokens]
        return x_TE.new_zeros(self._size, x_TE.shape[1]).index_copy(0, places, x_TE[: self._tokens])


def reads_first_tokens(model: Any) -> bool:
    """Whether nothing but each row's first token reaches the answer."""
    reader = getattr(model.base_model, "pooler", None) or getattr(model, "classifier", None)
    return (
        type(model).__name__.endswith("ForSequenceClassification")
        and type(reader).__name__ in _READ_FIRST_TOKENS
    )


def fits(model: Any) -> bool:
    """Whether every part of the stack is one that is written here."""
    config = model.config
    return (
        config.model_type in KINDS
        and not config.is_decoder
        and not getattr(config, "add_cross_attention", False)
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


def put_in(model: Any, dtype: torch.dtype) -> list[Projection]:
    """Replaces the forward of the encoder inside the base model. LoRA must be in place already."""
    encoder = model.base_model.encoder
    stack = _Stack(encoder, model.config, dtype)
    encoder.forward = stack
    return stack.projections
