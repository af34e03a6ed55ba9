"""What a run puts over a frozen base and saves in PEFT's format, whichever kind it is."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .adapters import (
    PREFIX,
    LoraSettings,
    adapter_config,
    adapter_tensors,
    add_lora,
    lora_settings_of,
    merge_lora,
)
from .failure import TrainFailure
from .ia3 import Ia3Settings, add_ia3, ia3_config, ia3_tensors, merge_ia3, read_ia3_settings
from .spec import Method, Task
from .tensor_files import read_tensors
from .virtual_tokens import (
    VirtualSettings,
    add_virtual_tokens,
    read_virtual_settings,
    virtual_config,
    virtual_tensors,
)

Settings = LoraSettings | Ia3Settings | VirtualSettings
# Methods whose artefact is an adapter.
ADAPTER_METHODS: tuple[Method, ...] = ("lora", "rslora", "dora", "qlora", "ia3", "prompt", "prefix")


def read_adapter(folder: Path) -> tuple[Settings, dict[str, Tensor]]:
    """Raises TrainFailure for kinds of adapter we do not read."""
    config = cast("dict[str, Any]", json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))
    kind = config.get("peft_type")
    if kind == "IA3":
        settings: Settings = read_ia3_settings(config)
    elif kind in ("PROMPT_TUNING", "PREFIX_TUNING"):
        settings = read_virtual_settings(config)
    else:
        settings = lora_settings_of(config)
    return settings, read_tensors(folder / "adapter_model.safetensors")


def method_of(settings: Settings) -> Method:
    """QLoRA's adapter is LoRA's: in how many bits the base lay while it was trained is not part of it."""
    if isinstance(settings, Ia3Settings):
        return "ia3"
    if isinstance(settings, VirtualSettings):
        return settings.method
    return "dora" if settings.dora else "rslora" if settings.rslora else "lora"


def attach(model: Any, settings: Settings, seed: int) -> None:
    """Freezes the base and puts the adapter over it, as it begins."""
    if isinstance(settings, Ia3Settings):
        add_ia3(model, settings)
    elif isinstance(settings, VirtualSettings):
        add_virtual_tokens(model, settings, seed)
    else:
        add_lora(model, settings, seed)


def tensors_of(model: Any, settings: Settings) -> dict[str, Tensor]:
    """What adapter_model.safetensors holds."""
    if isinstance(settings, Ia3Settings):
        return ia3_tensors(model, settings)
    if isinstance(settings, VirtualSettings):
        return virtual_tensors(model)
    return adapter_tensors(model, settings)


def config_of(model: Any, settings: Settings, *, task: Task, base_name: str) -> dict[str, Any]:
    """adapter_config.json."""
    if isinstance(settings, Ia3Settings):
        return ia3_config(model, settings, task=task, base_name=base_name)
    if isinstance(settings, VirtualSettings):
        return virtual_config(model, settings, task=task, base_name=base_name)
    return adapter_config(model, settings, task=task, base_name=base_name)


@torch.no_grad()
def load(model: Any, settings: Settings, tensors: dict[str, Tensor]) -> None:
    """Copies an adapter's tensors into what `attach` made. Raises TrainFailure when they do not fit."""
    own = tensors_of(model, settings)
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or foreign or wrong:
        raise TrainFailure(
            "incompatible_method",
            f"The adapter does not fit this model at {(missing + foreign + wrong)[0].removeprefix(PREFIX)}.",
            "Use the base model and the settings the adapter was made with.",
        )
    for name, value in own.items():
        value.copy_(tensors[name])


def merge(model: Any, settings: Settings) -> None:
    """Folds the adapter into the base's own weights. Raises TrainFailure for virtual tokens."""
    if isinstance(settings, VirtualSettings):
        raise TrainFailure(
            "export_not_possible",
            f"Virtual tokens (method {settings.method!r}) stand before a text and are no change of a weight.",
            "Export the adapter as it is; PEFT loads it over its base.",
        )
    if isinstance(settings, Ia3Settings):
        merge_ia3(model)
    else:
        merge_lora(model)
