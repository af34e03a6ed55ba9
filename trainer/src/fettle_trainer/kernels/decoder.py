"""Decoders of the Llama kind, layer by layer on rows laid end to end: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

The stream between layers is fp32, products run in the type of the compute. Legend: T tokens of all rows, E
width."""

from typing import Any

import torch
from torch import Tensor

from ..packing import current_lengths, current_reads
from .attention import attend
from .gate import swiglu
from .heads import Heads
from .layout import Layout
from .norm import Norm
from .projection import Projection, has_plain_head
from .varlen import Starts, attend_varlen

KINDS = ("llama", "mistral", "qwen2", "qwen3")


class Rotation:
    """The rows of the micro-batch at hand, laid out once and read by all its layers."""

    def __init__(self, heads: Heads, dtype: torch.dtype) -> None:
        self._heads, self.dtype = heads, dtype
        self._of: Tensor | None = None
        self._rows: Layout | Starts | None = None

    def attend(self, qkv: Tensor, turn: tuple[Tensor, Tensor], heads: Heads) -> Tensor:
        """T x H D. `turn`: cosines and sines, 1 x T x D."""
        if self._rows is None or turn[0] is not self._of:
            self._of = turn[0]
            self._rows = self._laid_out((turn[0][0], turn[1][0]))
        if isinstance(self._rows, Starts):
            return attend_varlen(qkv, self._rows, heads)
        return attend([qkv], self._rows, heads)

    def _laid_out(self, turn: tuple[Tensor, Tensor]) -> Layout | Starts:
        if turn[0].device.type == "cuda":
            return Starts(current_lengths(), turn, self.dtype)
        return Layout.of_self(current_lengths(), self._heads).turned(*turn, self.dtype)


class _Layer:
    """Stands in for a layer's forward."""

    def __init__(self, layer: Any, heads: Heads, rotation: Rotation, *, is_last: bool) -> None:
        dtype = rotation.dtype
        self._is_last = is_last
        attention, mlp = layer.self_attn, layer.mlp
        self._rotation, self._heads = rotation, heads
        self._before = Norm(layer.input_layernorm, dtype)
        self._between = Norm(layer.post_attention_layernorm, dtype)
        self._query_key_value = Projection([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self._out = Projection([attention.o_proj], dtype)
        # Not joined: a product this wide is slower than two.
        self._gate_up = Projection([mlp.gate_proj, mlp.up_proj], dtype, apart=True)
        self._down = Projection([mlp.down_proj], dtype)
        self.projections = [self._query_key_value, self._out, self._gate_up, self._down]
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self._query_norm, self._key_norm = (None if one is None else Norm(one, dtype) for one in norms)

    def __call__(self, hidden_states: Tensor, *_: Any, **named: Any) -> Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            x_TE = hidden_states[0].float()
            qkv = self._normed(self._query_key_value(self._before(x_TE)))
            seen = self._rotation.attend(qkv, named["position_embeddings"], self._heads)
            reads = current_reads() if self._is_last else None
            if reads is not None:
                x_TE, seen = x_TE.index_select(0, reads), seen.index_select(0, reads)
            x_TE = x_TE + self._out(seen)
            gate_TF, up_TF = self._gate_up.each(self._between(x_TE))
            x_TE = x_TE + self._down(swiglu(gate_TF, up_TF))
            return x_TE[None]

    def _normed(self, qkv: Tensor) -> Tensor:
        """Qwen3 norms each query and key head."""
        if self._query_norm is None or self._key_norm is None:
            return qkv
        query, key, value = torch.split(qkv, self._query_key_value.sizes, dim=-1)
        width = self._heads.width
        query = self._query_norm(query.reshape(-1, width)).view(query.shape)
        key = self._key_norm(key.reshape(-1, width)).view(key.shape)
        return torch.cat([query, key, value], dim=-1)


def heads_of(config: Any, layer: Any) -> Heads:
    attention = layer.self_attn
    window = getattr(attention, "sliding_window", None)
    if window is None and config.model_type == "mistral":
        window = getattr(config, "sliding_window", None)
    return Heads(
        query=int(config.num_attention_heads),
        key=int(config.num_key_value_heads),
        width=int(attention.head_dim),
        causal=True,
        scale=float(attention.scaling),
        window=int(window or 0),
    )


def fits(model: Any) -> bool:
    """Whether every part of the model is one that is written here."""
    config = model.config
    return (
        config.model_type in KINDS
        and config.hidden_act == "silu"
        and not getattr(config, "attention_dropout", 0.0)
        and has_plain_head(model)
    )


def put_in(model: Any, dtype: torch.dtype) -> list[Projection]:
    """Replaces the forward of each layer and of the last norm. LoRA must be in place already."""
    projections: list[Projection] = []
    base = model.base_model
    rotation = Rotation(heads_of(model.config, base.layers[0]), dtype)
    for layer in base.layers:
        is_last = layer is base.layers[-1]
        fast = _Layer(layer, heads_of(model.config, layer), rotation, is_last=is_last)
        projections += fast.projections
        layer.forward = fast
    last = Norm(base.norm, dtype)

    def normed(hidden_states: Tensor) -> Tensor:
        return last(hidden_states[0])[None]

    base.norm.forward = normed
    return projections
