"""Decoders of the Llama kind, layer by layer on rows laid end to end: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

The stream between layers is fp32, products run in the type of the compute. Legend: T tokens of all rows, E
width."""

from typing import Any, cast

import torch
from torch import Tensor

from ..packing import current_lengths, current_reads
from .attention import attend
from .gate import swiglu, swiglu_backward
from .heads import Heads
from .layout import Layout
from .norm import Norm, add, norm_heads, rms_norm, rms_norm_backward, rms_norm_weight_gradient
from .projection import Projection, has_plain_head
from .varlen import Starts, attend_varlen

KINDS = ("llama", "mistral", "qwen2", "qwen3")


class Rotation:
    """The rows of the micro-batch at hand, laid out once and read by all its layers."""

    def __init__(self, heads: Heads, dtype: torch.dtype) -> None:
        self._heads, self.dtype = heads, dtype
        self._of: Tensor | None = None
        self._rows: Layout | Starts | None = None

    def attend(
        self, qkv: Tensor, turn: tuple[Tensor, Tensor], heads: Heads, *, norms: tuple[Norm, Norm] | None
    ) -> Tensor:
        """T x H D. `turn`: cosines and sines, 1 x T x D. `norms`: of each query and each key head."""
        if self._rows is None or turn[0] is not self._of:
            self._of = turn[0]
            self._rows = self._laid_out((turn[0][0], turn[1][0]))
        if isinstance(self._rows, Starts):
            return attend_varlen(qkv, self._rows, heads, norms=norms)
        return attend([qkv if norms is None else norm_heads(qkv, norms, heads)], self._rows, heads)

    def _laid_out(self, turn: tuple[Tensor, Tensor]) -> Layout | Starts:
        if turn[0].device.type == "cuda":
            return Starts(current_lengths(), turn, self.dtype)
        return Layout.of_self(current_lengths(), self._heads).turned(*turn, self.dtype)


class _Asked(torch.autograd.Function):
    """Norm and product: what is asked of the stream, which passes by: its gradients are added where the
    norm's is made."""

    @staticmethod
    def forward(
        ctx: Any, x_TE: Tensor, weight_E: Tensor, layer: "_Layer", _: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        norm = layer.before
        x_TE, y_TE, inverse_T1 = rms_norm(x_TE, weight_E, eps=norm.eps, dtype=norm.dtype)
        (asked,), low_TR = layer.query_key_value.forward(y_TE)
        ctx.layer = layer
        ctx.save_for_backward(x_TE, inverse_T1, weight_E, y_TE, low_TR)
        return x_TE, asked

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_TE, grad_asked = gradients
        *kept, y_TE, low_TR = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        needs_x, needs_weight, *_ = cast("tuple[bool, ...]", ctx.needs_input_grad)
        layer = cast("_Layer", ctx.layer)
        grad_y = layer.query_key_value.backward(
            [grad_asked], y_TE, low_TR, needs_input=needs_x or needs_weight
        )
        if grad_y is None:
            return None, None, None, None
        normed = cast("tuple[Tensor, Tensor, Tensor]", tuple(kept))
        grad_x = rms_norm_backward(grad_y, normed, beside=grad_TE)[0] if needs_x else None
        return grad_x, rms_norm_weight_gradient(grad_y, normed) if needs_weight else None, None, None


class _Answered(torch.autograd.Function):
    """What attention saw is added to the stream, then what the layer makes of the sum."""

    @staticmethod
    def forward(
        ctx: Any, x_TE: Tensor, seen: Tensor, weight_E: Tensor, layer: "_Layer", _: Tensor | None
    ) -> Tensor:
        (added,), low_seen = layer.out.forward(seen)
        norm = layer.between
        x_TE, y_TE, inverse_T1 = rms_norm(x_TE, weight_E, eps=norm.eps, dtype=norm.dtype, added_TE=added)
        (gate_TF, up_TF), low_y = layer.gate_up.forward(y_TE)
        wide_TF, opened_TF = swiglu(gate_TF, up_TF)
        (added,), low_wide = layer.down.forward(wide_TF)
        ctx.layer = layer
        ctx.save_for_backward(
            x_TE, inverse_T1, weight_E, seen, low_seen, y_TE, low_y,
            gate_TF, up_TF, opened_TF, wide_TF, low_wide,
        )  # fmt: skip
        return add(x_TE, added)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TE, inverse_T1, weight_E, seen, low_seen, y_TE, low_y, *wide = ctx.saved_tensors
        gate_TF, up_TF, opened_TF, wide_TF, low_wide = wide
        needs_x, needs_seen, needs_weight, *_ = cast("tuple[bool, ...]", ctx.needs_input_grad)
        layer = cast("_Layer", ctx.layer)
        (grad_TE,) = gradients
        grad_wide = cast("Tensor", layer.down.backward([grad_TE.to(wide_TF.dtype)], wide_TF, low_wide))
        grad_gate = swiglu_backward(grad_wide, gate_TF, up_TF=up_TF, opened_TF=opened_TF)
        grad_y = cast("Tensor", layer.gate_up.backward(grad_gate, y_TE, low_y))
        normed = (x_TE, inverse_T1, weight_E)
        grad_weight = rms_norm_weight_gradient(grad_y, normed) if needs_weight else None
        grad_TE, narrowed = rms_norm_backward(grad_y, normed, beside=grad_TE)
        grad_seen = layer.out.backward([narrowed], seen, low_seen, needs_input=needs_seen)
        return grad_TE if needs_x else None, grad_seen, grad_weight, None, None


class _Layer:
    """Stands in for a layer's forward."""

    def __init__(self, layer: Any, heads: Heads, rotation: Rotation, *, is_last: bool) -> None:
        dtype = rotation.dtype
        self._is_last = is_last
        attention, mlp = layer.self_attn, layer.mlp
        self._rotation, self._heads = rotation, heads
        self.before = Norm(layer.input_layernorm, dtype)
        self.between = Norm(layer.post_attention_layernorm, dtype)
        self.query_key_value = Projection([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.out = Projection([attention.o_proj], dtype)
        # Not joined: a product this wide is slower than two.
        self.gate_up = Projection([mlp.gate_proj, mlp.up_proj], dtype, apart=True)
        self.down = Projection([mlp.down_proj], dtype)
        self.projections = [self.query_key_value, self.out, self.gate_up, self.down]
        normed = getattr(attention, "q_norm", None) is not None
        self._norms = (Norm(attention.q_norm, dtype), Norm(attention.k_norm, dtype)) if normed else None
        anchors = [one.anchor for one in (self.out, self.gate_up, self.down)]
        self._anchor = next((one for one in anchors if one is not None), None)

    def __call__(self, hidden_states: Tensor, *_: Any, **named: Any) -> Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            # apply() is untyped in torch's stubs.
            asked, answered = cast("Any", _Asked).apply, cast("Any", _Answered).apply
            x_TE, qkv = asked(hidden_states[0].float(), self.before.weight, self, self.query_key_value.anchor)
            seen = self._rotation.attend(qkv, named["position_embeddings"], self._heads, norms=self._norms)
            reads = current_reads() if self._is_last else None
            if reads is not None:
                x_TE, seen = x_TE.index_select(0, reads), seen.index_select(0, reads)
            return answered(x_TE, seen, self.between.weight, self, self._anchor)[None]


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
