"""LoRA: low-rank changes of linear layers, trained here, read and written in PEFT's format.

LoRA:   y = W x + s B A x       A: r x in, B: out x r, W frozen; s = alpha / r  (Hu et al. 2021, section 4.1)
rsLoRA: s = alpha / sqrt(r)                                                     (Kalajdzievski 2023)
DoRA:   y = g (W x + s B A x)   g = m / |W + s B A|, row by row; m: out, trained; the length is a constant of
                                the backward pass                               (Liu et al. 2024, section 4.3)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .failure import TrainFailure
from .four_bits import Linear4
from .spec import Task
from .tasks import objective_of

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """`modules_to_save`: modules trained whole and kept in the adapter (a new classification head)."""

    r: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | None
    modules_to_save: tuple[str, ...]
    rslora: bool = False
    dora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)


class LoraLinear(nn.Module):
    """Stands in for a linear layer (or GPT-2's Conv1D, whose weight is in x out)."""

    def __init__(self, base: nn.Module, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__()
        weight = cast("Tensor", base.weight)
        self.transposed = is_transposed(base)
        wide, tall = weight.shape if self.transposed else (weight.shape[1], weight.shape[0])
        self.base = base
        self.scale = settings.scale
        self.dropout = settings.dropout
        down = torch.empty(settings.r, wide)
        bound = 1 / math.sqrt(wide)  # kaiming_uniform with a = sqrt(5), as PEFT
        down.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(down.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(tall, settings.r, device=weight.device))
        self.magnitude = nn.Parameter(self._norm()) if settings.dora else None

    @property
    def weight(self) -> Tensor:
        """Some models look at a layer's weight for its type."""
        return cast("Tensor", self.base.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = cast("Tensor", self.base(x))
        drops = self.dropout > 0 and self.training
        if drops:
            x = functional.dropout(x, self.dropout)
        if self.magnitude is not None:
            return self._rescaled(x, y, drops=drops)
        low = functional.linear(x.to(self.lora_A.dtype), self.lora_A)
        if y.dtype != low.dtype:
            return y + functional.linear(low, self.lora_B * self.scale)
        # One GEMM that adds into the base's result.
        flat = torch.addmm(y.flatten(0, -2), low.flatten(0, -2), self.lora_B.t(), alpha=self.scale)
        return flat.view(y.shape)

    def _rescaled(self, x: Tensor, y: Tensor, *, drops: bool) -> Tensor:
        """DoRA. y + (g - 1) W x + g s B A x: a dropout of x reaches the change alone, as in PEFT."""
        assert self.magnitude is not None
        gain = self.magnitude / self._norm()
        low = functional.linear(x.to(self.lora_A.dtype), self.lora_A)
        change = functional.linear(low, self.lora_B * self.scale)
        if drops:
            weight = self.weight.t() if self.transposed else self.weight
            plain = functional.linear(x.to(weight.dtype), weight)
        else:
            bias = cast("Tensor | None", self.base.bias)
            plain = y if bias is None else y - bias
        return (y + (gain - 1) * plain + gain * change).to(y.dtype)

    def _changed(self) -> Tensor:
        """W + s B A in fp32, out x in."""
        weight = self.weight.t() if self.transposed else self.weight
        return weight.float() + self.scale * (self.lora_B.float() @ self.lora_A.float())

    @torch.no_grad()
    def _norm(self) -> Tensor:
        return _lengths(self._changed())

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight that gives this layer's answers, in the base's own layout and type, added in fp32."""
        whole = self._changed()
        if self.magnitude is not None:
            whole *= (self.magnitude / _lengths(whole))[:, None]
        return (whole.t() if self.transposed else whole).to(self.weight.dtype)


def _lengths(rows: Tensor) -> Tensor:
    return rows.square().sum(dim=1).sqrt()


def is_transposed(module: object) -> bool:
    return module.__class__.__name__ == "Conv1D"


def linear_modules(model: Any) -> dict[str, nn.Module]:
    """All layers LoRA can change, in model order."""
    return {
        name: module
        for name, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
        if isinstance(module, nn.Linear | Linear4) or is_transposed(module)
    }


def choose_targets(model: Any, targets: Sequence[str] | None, kept: Sequence[str]) -> list[str]:
    """Full names of the layers to adapt. `None` is all-linear: every linear layer but the output head,
    `kept`, and what the task does not ask (frozen by the loader). Raises TrainFailure naming the layers there
    are."""
    linear = {
        name: module
        for name, module in linear_modules(model).items()
        if any(parameter.requires_grad for parameter in module.parameters())
    }
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    inside = tuple(f"{name}." for name in kept)
    free = [
        name
        for name, module in linear.items()
        if module is not head and name not in kept and not name.startswith(inside)
    ]
    if targets is None:
        return free
    chosen = [name for name in free if any(name == one or name.endswith(f".{one}") for one in targets)]
    unused = [one for one in targets if not any(name == one or name.endswith(f".{one}") for name in free)]
    heads = [name for name, module in linear.items() if module is head]
    if unused and any(name == unused[0] or name.endswith(f".{unused[0]}") for name in heads):
        raise TrainFailure(
            "incompatible_method",
            f"target_modules names {unused[0]!r}, the output head. It is not adapted: in most models it is "
            "the embedding as well, and changing one would silently change, or miss, the other.",
            f"Leave {unused[0]!r} out, or train all weights with method 'full'.",
        )
    if unused or not chosen:
        known = sorted({name.rsplit(".", 1)[-1] for name in free})
        raise TrainFailure(
            "incompatible_method",
            f"target_modules names {unused[0] if unused else 'nothing'!r}, which this model does not have.",
            f"Use 'all-linear', or some of: {', '.join(known)}.",
        )
    return chosen


def add_lora(model: Any, settings: LoraSettings, seed: int) -> list[str]:
    """Freezes the base, puts LoRA over the chosen layers, thaws modules_to_save. Returns the names."""
    names = choose_targets(model, settings.targets, settings.modules_to_save)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, LoraLinear(getattr(owner, leaf), settings, generator))
    thaw_saved(model, settings.modules_to_save)
    return names


@torch.no_grad()
def keep_in_four_bits(model: Any, kept: Sequence[str], device: torch.device) -> None:
    """Every frozen linear layer but the output head and what lies in `kept`, also those below adapters, which
    must be in place already. One after the other goes to `device` and is made small there. Raises
    TrainFailure."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    inside = tuple(f"{name}." for name in kept)
    for name, module in linear_modules(model).items():
        if module is head or name in kept or name.startswith(inside):
            continue
        weight = cast("Tensor", module.weight).to(device)
        small = Linear4(weight.t() if is_transposed(module) else weight, cast("Any", module).bias)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, small)


def thaw_saved(model: Any, names: Sequence[str]) -> None:
    for name in names:
        for parameter in model.get_submodule(name).parameters():
            # Trained weights stay in fp32, whatever the frozen ones are.
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def lora_layers(model: Any) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        if isinstance(module, LoraLinear):
            yield name, module


def adapter_tensors(model: Any, settings: LoraSettings) -> dict[str, Tensor]:
    """What adapter_model.safetensors holds, in PEFT's names."""
    tensors: dict[str, Tensor] = {}
    for name, layer in lora_layers(model):
        tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach()
        if layer.magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector.weight"] = layer.magnitude.detach()
    return {**tensors, **module_tensors(model, settings.modules_to_save)}


def module_tensors(model: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Of modules kept whole in the adapter, in PEFT's names."""
    return {
        f"{PREFIX}{name}.{leaf}": value
        for name in names
        for leaf, value in model.get_submodule(name).state_dict().items()
    }


def adapter_config(model: Any, settings: LoraSettings, *, task: Task, base_name: str) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.21 reads it."""
    names = [name for name, _ in lora_layers(model)]
    return {
        "peft_type": "LORA",
        "task_type": objective_of(task).peft_task,
        "base_model_name_or_path": base_name,
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": _short_names(model, names, settings.modules_to_save),
        "modules_to_save": list(settings.modules_to_save) or None,
        "bias": "none",
        "fan_in_fan_out": any(layer.transposed for _, layer in lora_layers(model)),
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "inference_mode": True,
    }


def _short_names(model: nn.Module, names: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Last parts (`q_proj`), which other tools prefer, where they mean just these layers; else full."""
    leaves = {name.rsplit(".", 1)[-1] for name in names}
    plain = [name.removesuffix(".base") for name in linear_modules(model)]
    inside = tuple(f"{name}." for name in kept)
    # PEFT never adapts what lies in modules_to_save.
    meant = [
        n for n in plain if n.rsplit(".", 1)[-1] in leaves and n not in kept and not n.startswith(inside)
    ]
    return sorted(leaves) if set(meant) == set(names) else list(names)


def lora_settings_of(config: dict[str, Any]) -> LoraSettings:
    """From adapter_config.json. Raises TrainFailure for kinds of adapter we do not read."""
    unread = ("alora_invocation_tokens", "rank_pattern", "alpha_pattern")
    strange = [key for key in unread if config.get(key)]
    targets = config.get("target_modules")
    if config.get("peft_type") != "LORA" or strange or config.get("bias", "none") != "none":
        raise TrainFailure(
            "incompatible_method",
            f"This kind of adapter cannot be trained on: {', '.join(strange) or config.get('peft_type')}.",
            "Start from the base model, or from an adapter of LoRA, rsLoRA or DoRA.",
        )
    return LoraSettings(
        r=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout", 0.0)),
        targets=None if targets in (None, "all-linear") else tuple(cast("list[str]", targets)),
        modules_to_save=tuple(cast("list[str]", config.get("modules_to_save") or [])),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
    )


@torch.no_grad()
def merge_lora(model: Any) -> None:
    """Folds each change into its layer and puts the plain layer back."""
    for name, layer in list(lora_layers(model)):
        parent, _, leaf = name.rpartition(".")
        cast("Tensor", layer.base.weight).copy_(layer.merged_weight())
        setattr(model.get_submodule(parent), leaf, layer.base)
