"""The layers of a model rewritten for speed, equal to the model's own: fewer and larger products, no padding,
nothing kept for a backward pass that nobody needs."""

from typing import Any

import torch

from ..adapters import lora_layers
from ..packing import IMPLEMENTATION, answers_alike
from . import decoder, encoder
from .projection import Projection


class Kernels:
    """What stands in a model in place of its own layers. `head` is its output head."""

    def __init__(self, model: Any, projections: list[Projection], head: Projection | None) -> None:
        self._model = model
        self._projections = projections
        self.head = head

    def refresh(self) -> None:
        """To be called when weights have changed, before the next forward pass."""
        for projection in self._projections:
            projection.refresh()
        if self.head is not None:
            self.head.refresh()

    def disable(self) -> None:
        """The model's own layers again, with the weights as they are."""
        _take_out(self._model)


def enable(model: Any, dtype: torch.dtype) -> Kernels | None:
    """Puts the kernels into a model that is ready to train, adapters and all. None leaves it as it was: another
    architecture, dropout inside an adapter, a GPU, or answers that are not the model's own."""
    if model.device.type != "cpu" or any(layer.dropout for _, layer in lora_layers(model)):
        return None
    kind = next((kind for kind in (decoder, encoder) if kind.fits(model)), None)
    if kind is None:
        return None
    before = model.config._attn_implementation
    projections: list[Projection] = []

    def change() -> None:
        # No mask is made for an attention that transformers does not know.
        model.set_attn_implementation(IMPLEMENTATION)
        projections.extend(kind.put_in(model, dtype))

    if answers_alike(model, change, packed=kind is decoder):
        head = model.get_output_embeddings() if kind is decoder else None
        return Kernels(model, projections, None if head is None else Projection([head], dtype))
    _take_out(model)
    model.set_attn_implementation(before)
    return None


def _take_out(model: Any) -> None:
    for module in model.modules():
        module.__dict__.pop("forward", None)
