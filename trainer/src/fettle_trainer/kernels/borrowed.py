"""Faster layers that others wrote, for models or adapters that there are no fused layers for: Liger's kernels
in the model's own blocks, or these blocks compiled by PyTorch. Left out when they answer otherwise."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from ..packing import (
    IMPLEMENTATION,
    how_unlike,
    packed_answers,
    padded_answers,
    pair_answers,
    segment_attention,
)
from ..spec import Family, Layers

_PACKAGE = "liger_kernel"
# Liger's parts that a model's own blocks are given. Its loss is not asked, as ours lies behind the head; its
# positions are one function for all models of the process, and stay as they are.
_SILU, _GELU = ("silu", "swish"), ("gelu_pytorch_tanh",)
_LEFT_OUT = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def lend(model: Any, dtype: torch.dtype, *, asked: Layers, family: Family, packed: bool) -> str:
    """Puts them into a model that is ready to train; what to tell about it, empty where nothing was tried.
    `auto` takes Liger where it is installed and there is a GPU; compiling is only done when asked for."""
    if asked == "plain" or (asked == "auto" and model.device.type == "cpu"):
        return ""
    if asked == "compiled":
        change, put_back, name = _compiled(model), _uncompiled(model), "the model's own layers, compiled,"
    else:
        lack = _liger_lacks(model)
        if lack:
            return "" if asked == "auto" else f"Liger's kernels are not used, as {lack}"
        change, put_back, name = (
            _with_liger(model),
            _as_it_is(model),
            "the model's own layers with Liger's kernels",
        )
    ask = packed_answers if packed else pair_answers if family == "seq2seq" else padded_answers
    unlike = how_unlike(model, change, dtype=dtype, answers=ask, both_ways=True)
    if not unlike:
        return f"{name} answer as without"
    put_back()
    return f"{name} are not used, as their {unlike}"


def _liger_lacks(model: Any) -> str:
    if importlib.util.find_spec(_PACKAGE) is None:
        return f"{_PACKAGE} is not installed (node scripts/setup.mjs --liger)"
    # Triton's interpreter works on a CPU: slow, and enough for tests.
    if model.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "they need a GPU"
    kind = model.config.model_type
    try:
        known = _liger().MODEL_TYPE_TO_APPLY_LIGER_FN
    except Exception as error:  # half a package, or one that does not match transformers
        return f"{_PACKAGE} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})"
    if kind not in known:
        return f"there are none for {kind}"
    config = model.config.get_text_config()
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    # They ask for no name, and compute the one that the family was made with.
    if activation not in (_GELU if kind.startswith("gemma") else _SILU):
        return f"they know no {kind} with {activation}"
    return ""


def _liger() -> Any:
    return importlib.import_module(f"{_PACKAGE}.transformers.monkey_patch")


def _with_liger(model: Any) -> Callable[[], None]:
    def change() -> None:
        # Liger names its classes in the module of the model's code too: models made later would be of them.
        code = vars(sys.modules[type(model).__module__])
        before = dict(code)
        try:
            _liger()._apply_liger_kernel_to_instance(model=model, **_LEFT_OUT)
        finally:
            code.update(before)

    return change


def _as_it_is(model: Any) -> Callable[[], None]:
    """Puts the modules' attributes back as they were when this was called."""
    before = [(module, dict(vars(module))) for module in _modules(model)]

    def put_back() -> None:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)

    return put_back


def _compiled(model: Any) -> Callable[[], None]:
    def change() -> None:
        from transformers import AttentionInterface

        # In place of what stands in for it since the light start.
        importlib.import_module("torch._dynamo.config")
        # Rows differ in each step: attention stays as it is, between compiled parts.
        kept_out = cast("Any", torch.compiler).disable(segment_attention)
        cast("Any", AttentionInterface).register(IMPLEMENTATION, kept_out)
        for block in _blocks(model):
            cast("Any", block).compile(dynamic=True)

    return change


def _uncompiled(model: Any) -> Callable[[], None]:
    def put_back() -> None:
        for block in _blocks(model):
            vars(block).pop("_compiled_call_impl", None)

    return put_back


def _modules(model: Any) -> list[nn.Module]:
    return list(model.modules())


def _blocks(model: Any) -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in _modules(model) if isinstance(module, GradientCheckpointingLayer)]
