"""The layers of a model rewritten for speed, equal to the model's own: fewer and larger products, no padding,
nothing kept for a backward pass that nobody needs."""

from typing import Any

import torch
from torch import Tensor

from ..adapters import lora_layers
from ..collate import Batch
from ..compared import ANEW, Compared
from ..packing import filler, how_unlike, packed_answers, padded_answers, pair_answers, switch
from . import decoder, embedding, encoder, passes, t5
from .embedding import Embedding
from .projection import Projection

# How rows are fed to each kind.
_ANSWERS = {decoder: packed_answers, encoder: padded_answers, t5: pair_answers}


class Kernels:
    """What stands in a model in place of its own layers. `head` is its output head."""

    def __init__(self, model: Any, parts: list[Projection | Embedding], head: Projection | None) -> None:
        self._model = model
        self._kind = next(kind for kind in _ANSWERS if kind.fits(model))
        self._parts = parts if head is None else [*parts, head]
        self.head = head

    def reads(self, batch: Batch) -> Tensor | None:
        """For `segments`: the tokens whose answers the task reads, when that is not all of them. They come
        first in what the model answers, in that order; more may follow."""
        if self._kind is decoder:
            places = batch.gather_N
            return torch.cat([places, places.new_zeros(filler(len(places)))])
        if self._kind is encoder and encoder.reads_first_tokens(self._model):
            lengths = torch.tensor(batch.row_lengths)
            return lengths.cumsum(0) - lengths
        return None

    def refresh(self) -> None:
        """To be called when weights have changed, before the next forward pass: gradients begin anew."""
        for part in self._parts:
            part.refresh()

    def disable(self) -> None:
        """The model's own layers again, with the weights as they are."""
        _take_out(self._model)


def enable(model: Any, dtype: torch.dtype, compared: Compared = ANEW) -> tuple[Kernels | None, str]:
    """Puts the kernels into a model that is ready to train, adapters and all, or leaves it; and why."""
    kind = next((kind for kind in _ANSWERS if kind.fits(model)), None)
    if kind is None:
        return None, f"there are no fused layers for {model.config.model_type}"
    if model.device.type != "cpu" and kind is not decoder:
        return None, f"the fused layers for {model.config.model_type} are for CPUs"
    if any(layer.dropout for _, layer in lora_layers(model)):
        return None, "the fused layers know no dropout inside an adapter: lora_dropout 0 is faster"
    if any(layer.magnitude is not None for _, layer in lora_layers(model)):
        return None, "the fused layers know no DoRA, which rescales whole weights"
    before = model.config._attn_implementation
    parts: list[Projection | Embedding] = []

    def change() -> None:
        switch(model)
        parts.extend(kind.put_in(model, dtype))
        parts.extend(embedding.put_in(model))

    def compare() -> str:
        return how_unlike(model, change, dtype=dtype, answers=_ANSWERS[kind])

    made = passes.compiled() if kind is decoder and passes.is_used(dtype, model.device) else ""
    unlike = compared.ask(model, f"fused, {dtype}, {made}", change=change, compare=compare)
    if not unlike:
        head = model.get_output_embeddings() if kind is not encoder else None
        kernels = Kernels(model, parts, None if head is None else Projection([head], dtype))
        return (
            kernels,
            f"the fused layers answer as the model's own do{_between_products(kind, dtype, model.device)}",
        )
    _take_out(model)
    model.set_attn_implementation(before)
    return None, f"the fused layers are not used, as their {unlike}"


def _between_products(kind: Any, dtype: torch.dtype, device: torch.device) -> str:
    """What a decoder's layers do between their products, where it could be done in one pass."""
    if kind is not decoder or dtype != torch.bfloat16 or passes.between(dtype, device) is not None:
        return ""
    missing = "no C compiler (cc)" if device.type == "cpu" else "no Triton"
    return f", by PyTorch's own operations, as {missing} works here"


def _take_out(model: Any) -> None:
    for module in model.modules():
        module.__dict__.pop("forward", None)
