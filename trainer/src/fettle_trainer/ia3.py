"""IA3: keys, values and what enters the feed-forward's second layer are rescaled, channel by channel.

    keys and values:       y = l * (W x + b)        l: out x 1
    second feed-forward:   y = W (l * x) + b        l: 1 x in                  (Liu et al. 2022, section 3.3)

Trained here, read and written in PEFT's format. l begins as ones: the model begins as its base.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .adapters import PREFIX, is_transposed, linear_modules, module_tensors, thaw_saved
from .failure import TrainFailure
from .spec import Task
from .tasks import objective_of

# How models name their keys and values, apart or as one layer, and the layer back to the model's width.
_ATTENTION = ("k_proj", "v_proj", "key", "value", "k_lin", "v_lin", "k", "v", "c_attn", "query_key_value")
_FEED_FORWARD = ("down_proj", "fc2", "wo", "lin2", "mlp.c_proj", "dense_4h_to_h", "output.dense")


@dataclass(frozen=True, slots=True)
class Ia3Settings:
    """Full names of the layers. `modules_to_save`: as of LoRA."""

    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    modules_to_save: tuple[str, ...]


class Ia3Linear(nn.Module):
    """Stands in for a linear layer (or GPT-2's Conv1D). `feeds`: the input is rescaled, not the output."""

    def __init__(self, base: nn.Module, *, feeds: bool) -> None:
        super().__init__()
        weight = cast("Tensor", base.weight)
        wide, tall = weight.shape if is_transposed(base) else (weight.shape[1], weight.shape[0])
        self.base, self.feeds = base, feeds
        self.ia3_l = nn.Parameter(torch.ones((1, wide) if feeds else (tall, 1), device=weight.device))

    @property
    def weight(self) -> Tensor:
        """Some models look at a layer's weight for its type."""
        return cast("Tensor", self.base.weight)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.ia3_l.flatten()
        if self.feeds:
            return cast("Tensor", self.base((x * scale).to(x.dtype)))
        y = cast("Tensor", self.base(x))
        return (y * scale).to(y.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Folds the scales into the base's weight and bias, in fp32."""
        weight = self.weight
        scale = self.ia3_l.t() if is_transposed(self.base) else self.ia3_l
        weight.copy_((weight.float() * scale).to(weight.dtype))
        bias = cast("Tensor | None", self.base.bias)
        if bias is not None and not self.feeds:
            bias.copy_((bias.float() * self.ia3_l.flatten()).to(bias.dtype))


def ia3_settings(model: Any, heads: tuple[str, ...]) -> Ia3Settings:
    """Raises TrainFailure when the model's layers bear no name that is known."""
    inside = tuple(f"{name}." for name in heads)
    names = [n for n in linear_modules(model) if n not in heads and not n.startswith(inside)]
    attention = tuple(n for n in names if _ends(n, _ATTENTION))
    # An attention's own output layer bears the same name in BERT's kind.
    feeds = tuple(n for n in names if _ends(n, _FEED_FORWARD) and not n.endswith("attention.output.dense"))
    if not attention or not feeds:
        lacking = "feed-forward" if attention else "key or value"
        raise TrainFailure(
            "incompatible_method",
            f"No {lacking} layer of a {model.config.model_type} model bears a name that IA3 knows.",
            "Use method 'lora': it adapts every linear layer, whatever its name.",
        )
    return Ia3Settings(attention, feeds, heads)


def _ends(name: str, leaves: tuple[str, ...]) -> bool:
    return any(name == leaf or name.endswith(f".{leaf}") for leaf in leaves)


def add_ia3(model: Any, settings: Ia3Settings) -> None:
    """Freezes the base, puts scales over its layers, thaws modules_to_save. Raises TrainFailure."""
    linear = linear_modules(model)
    lacking = [name for name in (*settings.attention, *settings.feed_forward) if name not in linear]
    if lacking:
        raise TrainFailure(
            "incompatible_method",
            f"The adapter rescales {lacking[0]!r}, which this model does not have.",
            "Use the base model that the adapter was made with.",
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in (*settings.attention, *settings.feed_forward):
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, Ia3Linear(getattr(owner, leaf), feeds=name in settings.feed_forward))
    thaw_saved(model, settings.modules_to_save)


def ia3_layers(model: Any) -> Iterator[tuple[str, Ia3Linear]]:
    for name, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        if isinstance(module, Ia3Linear):
            yield name, module


def ia3_tensors(model: Any, settings: Ia3Settings) -> dict[str, Tensor]:
    """What adapter_model.safetensors holds, in PEFT's names."""
    scales = {f"{PREFIX}{name}.ia3_l": layer.ia3_l.detach() for name, layer in ia3_layers(model)}
    return {**scales, **module_tensors(model, settings.modules_to_save)}


def ia3_config(model: Any, settings: Ia3Settings, *, task: Task, base_name: str) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.21 reads it."""
    return {
        "peft_type": "IA3",
        "task_type": objective_of(task).peft_task,
        "base_model_name_or_path": base_name,
        "target_modules": [*settings.attention, *settings.feed_forward],
        "feedforward_modules": list(settings.feed_forward),
        "modules_to_save": list(settings.modules_to_save) or None,
        "fan_in_fan_out": any(is_transposed(layer.base) for _, layer in ia3_layers(model)),
        "init_ia3_weights": True,
        "inference_mode": True,
    }


def read_ia3_settings(config: dict[str, Any]) -> Ia3Settings:
    """From adapter_config.json. Raises TrainFailure for one that does not name its layers in full."""
    feeds, targets = config.get("feedforward_modules"), config.get("target_modules")
    if not isinstance(targets, list) or not isinstance(feeds, list):
        raise TrainFailure(
            "incompatible_method",
            "This IA3 adapter does not list its target_modules and feedforward_modules.",
            "Start from the base model, or from an adapter made here.",
        )
    names, second = cast("list[str]", targets), cast("list[str]", feeds)
    return Ia3Settings(
        attention=tuple(name for name in names if name not in second),
        feed_forward=tuple(second),
        modules_to_save=tuple(cast("list[str]", config.get("modules_to_save") or [])),
    )


@torch.no_grad()
def merge_ia3(model: Any) -> None:
    """Folds each scale into its layer and puts the plain layer back."""
    for name, layer in list(ia3_layers(model)):
        layer.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.base)
