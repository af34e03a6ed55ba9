"""Which part of a model is trained when the rest is frozen: its last layers, or its head alone.

Backward ends below the lowest layer that is trained: nothing before it asks for a gradient.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import nn

from .failure import TrainFailure


def train_heads(model: Any, heads: Sequence[str]) -> None:
    """Freezes all but `heads`, the parts new for the task."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in heads:
        _thaw(model.get_submodule(name))


def train_last_layers(model: Any, count: int, heads: Sequence[str]) -> None:
    """Freezes all but the last `count` layers, the norm or pooler behind them, and `heads`. Of an
    encoder-decoder: of its decoder. The output head of a language model stays frozen, as it may be the
    embedding. Raises TrainFailure when the model has no more layers than `count`."""
    stack, after = _layers(model.get_decoder() if model.config.is_encoder_decoder else model.base_model)
    if count >= len(stack):
        raise TrainFailure(
            "incompatible_method",
            f"trainable_layers is {count}, but the model has {len(stack)} layers: none would stay frozen.",
            f"Use at most {len(stack) - 1}, or method 'full'." if len(stack) > 1 else "Use method 'full'.",
        )
    # A pooler that the task does not ask was frozen by the loader: it would get no gradient.
    asked = [module for module in after if any(parameter.requires_grad for parameter in module.parameters())]
    train_heads(model, heads)
    for module in [*list(stack)[-count:], *asked]:
        _thaw(module)


def _thaw(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(True)


def _layers(trunk: nn.Module) -> tuple[nn.ModuleList, list[nn.Module]]:
    """The stack of equal layers, and what comes after it inside `trunk`."""
    name, stack = max(_outermost_lists(trunk), key=lambda one: len(one[1]))
    after: list[nn.Module] = []
    owner, path = trunk, name.split(".")
    for leaf in path:
        children = list(owner.named_children())
        place = [child for child, _ in children].index(leaf)
        # BART's kind registers the norm of its embeddings behind its layers.
        after += [module for child, module in children[place + 1 :] if "embed" not in child]
        owner = cast("nn.Module", getattr(owner, leaf))
    return stack, after


def _outermost_lists(trunk: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Raises TrainFailure when there is none. Lists inside a layer (experts) are its own affair."""
    found: list[str] = []
    for name, module in cast("Iterator[tuple[str, nn.Module]]", trunk.named_modules()):
        if isinstance(module, nn.ModuleList) and not name.startswith(tuple(f"{one}." for one in found)):
            found.append(name)
            yield name, module
    if not found:
        raise TrainFailure(
            "incompatible_method",
            f"{type(trunk).__name__} has no list of layers, so its last ones cannot be told.",
            "Use method 'lora' or 'full'.",
        )
