"""Bytes that a model's layers keep of one micro-batch for its way back, counted tensor by tensor.

For our own layers (kernels/) the counts are of the tensors they save; for a model's own, of those that
autograd saves of its parts.

Legend: T tokens, L of one row, E width, F inner width, H query heads, K key heads, D head width, d bytes of a
number in products.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .adapters import lora_layers
from .collate import Batch
from .kernels import passes, varlen
from .kernels.attention import QUERIES_AT_ONCE
from .kernels.heads import Heads
from .kernels.layout import LONGEST_PLAIN, Layout, Run
from .models import Loaded
from .packing import filler
from .spec import Task
from .tasks import objective_of

_FLOAT = 4
# Per token, once: embeddings, tables of positions, and what one layer's way back takes while it runs. In
# widths.
_ONCE_WIDTHS = 34
# In inner widths. Of ReLU, what it gives, which the next product keeps anyway; of another activation, its
# input too. Of a gate (kernels/gate.py, or a model's own), its inputs, the activation, and the product.
_RELU, _ACTIVATION, _GATE = 1, 2, 4
_LAYER = re.compile(r"(encoder|decoder)?\.?(?:layers|layer|block|blocks|h)\.(\d+)\.")
# Where each norm follows what it norms, attention reads what the norm before keeps.
_NORMS_BEHIND = ("bert", "roberta", "xlm-roberta", "camembert", "electra")

# What a layer keeps for its way back: all that is read there, what went into it alone, or nothing here.
Keeps = Literal["everything", "inputs", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """`kept`: layers with something trained in or below them, of the encoder (or the only stack) and of the
    decoder. `before`, `behind`: bytes per token that each keeps before and behind its attention, heads not
    counted. `adapters`: copies of them in the type of the products. `reads`: the tokens that the last layer
    answers, where that is not all. `flash`: attention's weights are never written down."""

    kept: tuple[int, int]
    heads: Heads
    width: int
    inner: int
    d: int
    before: int
    behind: int
    adapters: int
    fused: bool
    flash: bool
    reads: Callable[[Batch], Tensor | None] | None
    drops: bool

    @classmethod
    def of(cls, loaded: Loaded, dtype: torch.dtype, task: Task) -> "Layers":
        config: Any = loaded.model.config.get_text_config()
        fused = loaded.kernels is not None
        pairs = bool(config.is_encoder_decoder)
        causal = loaded.family == "decoder"
        width = int(config.hidden_size)
        heads = _heads(config, width, causal=causal)
        inner = int(_first(config, ("intermediate_size", "d_ff", "ffn_dim", "n_inner")) or 4 * width)
        d = torch.finfo(dtype).bits // 8
        gated = causal or bool(getattr(config, "is_gated_act", False))
        inner_kept = _GATE if gated else _RELU if pairs else _ACTIVATION
        if fused and causal and passes.between(dtype, loaded.model.device) is not None:
            inner_kept -= 1  # the activation is made again
        # Norms keep their input in fp32, products theirs in d.
        before = behind = _FLOAT * width + d * width
        if config.model_type in _NORMS_BEHIND:
            before, behind = before - _FLOAT * width, behind + _FLOAT * width
        behind += d * inner_kept * inner
        if not fused:
            # Queries, keys and values once more where positions turn them, and what lies between.
            before += d * (heads.query + 2 * heads.key) * heads.width + _FLOAT * width
            behind += _FLOAT * width + (0 if causal else d * inner)
        flash = loaded.model.device.type != "cpu"
        if fused and flash:
            # Queries and keys once more, turned; before that in fp32 where they are normed by PyTorch.
            by_one_kernel = passes.on_gpu(dtype, loaded.model.device) is not None
            normed = config.model_type == "qwen3"
            before += (d + (normed and not by_one_kernel) * _FLOAT) * (heads.query + heads.key) * heads.width
            if heads.group > 1 and not varlen.shares_keys():
                # Keys and values copied for each query, in place of turned keys; the kernel that norms reads
                # what they were copied from, and nothing else does.
                read = normed and by_one_kernel
                copied = 2 * heads.query - heads.key - (0 if read else heads.query + 2 * heads.key)
                before += d * copied * heads.width
        drops = _drops(config)
        if drops:
            # What each dropout multiplied with.
            behind += d * (2 * width + (inner if pairs else 0))
            before += d * width if pairs else 0
        kept = _kept(loaded, config, pairs=pairs)
        adapters = list(lora_layers(loaded.model))
        if sum(kept):
            # What the first half of each gives.
            before += sum(int(layer.lora_A.shape[0]) for _, layer in adapters) // sum(kept) * d
        return cls(
            kept=kept,
            heads=heads,
            width=width,
            inner=inner,
            d=d,
            before=before,
            behind=behind,
            adapters=d * sum(layer.lora_A.numel() + layer.lora_B.numel() for _, layer in adapters),
            fused=fused,
            flash=flash,
            reads=loaded.kernels.reads if loaded.kernels and objective_of(task).reads_some else None,
            drops=drops and fused and not pairs,
        )

    def bytes_of(self, batch: Batch, keeps: Keeps = "everything") -> int:
        """The widest moment: the way forth is done, the way back begins."""
        kept = self.kept_of(batch) if keeps == "everything" else self._remade(batch, keeps)
        return self._once(batch) + kept

    def _remade(self, batch: Batch, keeps: Keeps) -> int:
        """What goes into each layer, and all that the one keeps which is computed again."""
        first, second = self.kept
        one = replace(self, kept=(min(first, 1), min(second, 1)), reads=None)
        sources, targets = (sum(lengths) for lengths in self._lengths(batch))
        inputs = _FLOAT * self.width * (first * sources + second * targets)
        return one.kept_of(batch) + (inputs if keeps == "inputs" else 0)

    def kept_of(self, batch: Batch) -> int:
        """What autograd keeps."""
        sources, targets = self._lengths(batch)
        reads = self.reads(batch) if self.reads else None
        first, second = self.kept
        total = self.adapters + self._stack(sources, first, None if reads is None else len(reads))
        if targets:
            total += self._stack(targets, second, None) + second * self._across(targets, sources)
        return total

    def passing(self, batch: Batch) -> int:
        """Without a way back: one layer at a time."""
        sources, targets = self._lengths(batch)
        return self._once(batch) + self._attention(Layout.of_self(tuple(targets or sources), self.heads))

    def _once(self, batch: Batch) -> int:
        sources, targets = self._lengths(batch)
        return _ONCE_WIDTHS * self.width * (sum(sources) + sum(targets))

    def _stack(self, lengths: Sequence[int], count: int, asked: int | None) -> int:
        if not count:
            return 0
        tokens = sum(lengths)
        seen = self.d * self.heads.query * self.heads.width
        answered = tokens * (count - 1) + (tokens if asked is None else asked)
        attention = self._attention(Layout.of_self(tuple(lengths), self.heads))
        return count * (tokens * self.before + attention) + answered * (self.behind + seen)

    def _across(self, targets: Sequence[int], sources: Sequence[int]) -> int:
        """Attention to other rows: its norm and queries of each target, keys and values of each source."""
        most = max(len(targets), len(sources))
        both = [(*lengths, *(0,) * (most - len(lengths))) for lengths in (targets, sources)]
        attention = self._attention(Layout.of_other(both[0], both[1], self.heads))
        seen = self.d * self.heads.query * self.heads.width
        return attention + sum(targets) * (_FLOAT * self.width + self.d * self.width + seen)

    def _attention(self, layout: Layout) -> int:
        """Heads as they are laid out, filled up, and the weights of each run of rows. PyTorch's own attention
        keeps no weights, nor does a GPU's."""
        heads = sum(layout.sizes) * self.heads.width * self.d
        if not self.fused or self.flash:
            return heads
        return heads + sum(self._weights(run) for run in layout.runs)

    def _weights(self, run: Run) -> int:
        per_head = run.count * self.heads.query
        if not self.heads.causal:
            return (2 if self.drops else 1) * per_head * run.length * run.key_length * self.d
        if run.length > LONGEST_PLAIN:
            return per_head * run.length * (self.heads.width * self.d + _FLOAT)
        size = -(-run.length // -(-run.length // QUERIES_AT_ONCE))
        return per_head * run.length * (run.length + size) // 2 * self.d

    def _lengths(self, batch: Batch) -> tuple[list[int], list[int]]:
        """As the layers see rows: end to end with what fills them up, or padded."""
        sources, targets = list(batch.row_lengths), list(batch.target_lengths)
        if not self.fused and batch.lengths is None:
            return [max(sources)] * len(sources), [max(targets)] * len(targets) if targets else []
        if batch.lengths is None:
            for lengths in (sources, targets):
                fill = filler(sum(lengths))
                lengths += [fill] if fill else []
        return sources, targets


def _heads(config: Any, width: int, *, causal: bool) -> Heads:
    count = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or count)
    own = _first(config, ("head_dim", "d_kv")) or width // count
    return Heads(query=count, key=keys, width=int(own), causal=causal, scale=1.0)


def _first(config: Any, names: Sequence[str]) -> int | None:
    return next((value for name in names if (value := getattr(config, name, None))), None)


def _drops(config: Any) -> bool:
    names = ("hidden_dropout_prob", "dropout_rate", "dropout")
    return any(float(getattr(config, name, None) or 0.0) > 0 for name in names)


def _kept(loaded: Loaded, config: Any, *, pairs: bool) -> tuple[int, int]:
    """From the lowest trained layer up, of each stack."""
    count = int(config.num_hidden_layers)
    written = int(getattr(config, "num_decoder_layers", None) or count) if pairs else 0
    if loaded.adapter is not None:
        return count, written
    parameters = list(cast("Iterator[tuple[str, nn.Parameter]]", loaded.model.named_parameters()))
    inside = (place for place, (name, _) in enumerate(parameters) if _LAYER.search(name))
    first = next(inside, len(parameters))
    # Embeddings come before layers; norms, poolers and heads behind.
    if any(parameter.requires_grad for _, parameter in parameters[:first]):
        return count, written
    lowest: dict[str, int] = {}
    for name in loaded.trainable():
        found = _LAYER.search(name)
        if found is not None:
            stack = found[1] if pairs and found[1] else "encoder"
            lowest[stack] = min(lowest.get(stack, count), int(found[2]))
    return count - lowest.get("encoder", count), written - lowest.get("decoder", written)
