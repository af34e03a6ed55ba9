"""Adapters (LoRA and its kin, IA3) over one shared base model, switched per row of a batch.

The base stays as it is. A forward hook on each adapted module adds, for the rows of an adapter,

    y_row += scale * (x_row A^T) B^T          A: R x I, B: O x R, R = rank

so one batch may mix adapters and bare rows. DoRA also scales the module's own output, channel by channel; IA3
does that alone, or feeds the module a rescaled input.
`modules_to_save` inside the base replace the module's output for their rows; those outside it (a head for
classification) are kept in `Adapter.head` for serve_heads.py.
Virtual tokens (prompt and prefix tuning) become keys and values that a generation begins with.
Files are PEFT's format, safetensors only.
"""

import json
import math
import re
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from .model_folder import check_adapter_folder
from .serve_refusal import ServeRefusal
from .virtual_tokens import NAME as VIRTUAL_NAME
from .virtual_tokens import States, computed_states, stored_states

_PREFIX = "base_model.model."
_VIRTUAL = ("PROMPT_TUNING", "PREFIX_TUNING")


@dataclass(frozen=True, slots=True)
class Delta:
    """Change of one module. `up_OR` holds the scale; `gain_I` is of its input, `gain_O` of its output."""

    down_RI: Tensor | None = None
    up_OR: Tensor | None = None
    bias_O: Tensor | None = None
    gain_O: Tensor | None = None
    gain_I: Tensor | None = None

    def shape(self, module: tuple[int, int]) -> tuple[int, int]:
        """Outputs and inputs it is made for; those of `module` where it does not say."""
        outs = self.up_OR if self.up_OR is not None else self.gain_O
        ins = self.gain_I if self.down_RI is None else self.down_RI
        return (module[0] if outs is None else outs.shape[0], module[1] if ins is None else ins.shape[-1])


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """`saved`: replaced tensors of modules inside the base; `head`: of modules the base does not have.
    `before`: keys and values of virtual tokens, of each layer; they take `num_before` positions."""

    path: str
    deltas: dict[str, Delta] = field(repr=False)
    saved: dict[str, dict[str, Tensor]] = field(repr=False)
    head: dict[str, Tensor] = field(repr=False)
    before: States = field(default_factory=list[tuple[Tensor, Tensor]], repr=False)

    @property
    def num_before(self) -> int:
        return int(self.before[0][0].shape[2]) if self.before else 0


@dataclass(slots=True)
class _Shelved:
    adapter: Adapter
    stamp: tuple[int, int]


class AdapterShelf:
    """The adapters in memory; the least recently used goes first. A request in flight keeps its own."""

    def __init__(self, model: Any, max_adapters: int) -> None:
        self._model = model
        self._max_adapters = max_adapters
        self._shelf: OrderedDict[str, _Shelved] = OrderedDict()
        self._hooked: set[str] = set()
        self._groups: list[tuple[Adapter, Tensor | None]] = []
        self._num_rows = 0

    @property
    def paths(self) -> list[str]:
        return list(self._shelf)

    def get(self, path: str) -> Adapter:
        """The adapter of this folder, read again when its file changed. ServeRefusal when it does not fit."""
        stamp = _stamp(Path(path))
        known = self._shelf.pop(path, None)
        if known is None or known.stamp != stamp:
            known = _Shelved(self._read(Path(path)), stamp)
        self._shelf[path] = known
        while len(self._shelf) > self._max_adapters:
            self._shelf.popitem(last=False)
        return known.adapter

    @contextmanager
    def rows(self, adapters: Sequence[Adapter | None]) -> Generator[None]:
        """In forward passes inside, row i of the batch runs under `adapters[i]` (None: the bare base)."""
        self._groups = _grouped(adapters, self._model.device)
        self._num_rows = len(adapters)
        try:
            yield
        finally:
            self._groups = []

    def _read(self, folder: Path) -> Adapter:
        check_adapter_folder(folder)
        config = _read_config(folder)
        if config["peft_type"] in _VIRTUAL:
            return Adapter(str(folder), {}, {}, {}, self._read_virtual(folder, config))
        deltas: dict[str, dict[str, Tensor]] = {}
        saved: dict[str, dict[str, Tensor]] = {}
        head: dict[str, Tensor] = {}
        for key, tensor in _read_tensors(folder).items():
            tensor = tensor.to(self._model.device, self._model.dtype)
            name, part = _split_key(key, folder)
            module = self._find(name)
            if part.startswith(("lora_", "ia3_")):
                deltas.setdefault(self._adapted(name, module, folder), {})[part] = tensor
            elif module is None:
                head[f"{name}.{part}"] = tensor
            else:
                saved.setdefault(self._replaced(name, module, folder), {})[part] = tensor
        ready = {name: _delta(name, parts, config=config, folder=folder) for name, parts in deltas.items()}
        self._check_shapes(ready, saved, folder)
        for name, parts in deltas.items():
            if config.get("use_dora"):
                ready[name] = self._rescaled(name, ready[name], parts=parts, folder=folder)
        for name in [*ready, *saved]:
            self._hook(name)
        return Adapter(str(folder), ready, saved, head)

    @torch.no_grad()
    def _read_virtual(self, folder: Path, config: dict[str, Any]) -> States:
        """Outside of `rows`, so that the bare base reads a prompt."""
        embeddings = _read_tensors(folder).get(VIRTUAL_NAME)
        embed = self._model.get_input_embeddings().weight
        is_prompt = config["peft_type"] == "PROMPT_TUNING"
        try:
            if embeddings is None or self._model.config.is_encoder_decoder:
                raise ValueError("it takes a decoder, and a tensor prompt_embeddings")
            own = embeddings.to(embed.device, embed.dtype)
            trunk = self._model.base_model
            bare = computed_states(trunk.forward, own if is_prompt else embed[:1])
            heads = int(bare[0][0].shape[1])
            states = bare if is_prompt else stored_states(own, layers=len(bare), heads=heads)
            if states[0][0].shape[3] != bare[0][0].shape[3]:
                raise ValueError(f"its heads have width {states[0][0].shape[3]}, not {bare[0][0].shape[3]}")
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise ServeRefusal(
                "inference_failed",
                f"Adapter {folder} does not fit this model ({error}). "
                "Serve it over the base model it was trained on.",
            ) from error
        return states

    def _find(self, name: str) -> tuple[str, nn.Module] | None:
        """Canonical name and module: adapters of a bare trunk and of the same trunk under a head both fit."""
        modules = cast(dict[str, nn.Module], dict(self._model.named_modules()))
        prefix = f"{self._model.base_model_prefix}."
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in modules:
                return candidate, modules[candidate]
        return None

    def _adapted(self, name: str, found: tuple[str, nn.Module] | None, folder: Path) -> str:
        if found is None:
            raise ServeRefusal(
                "inference_failed",
                f"Adapter {folder} changes the module {name}, which its base model does not have. "
                "Serve it over the base model it was trained on.",
            )
        return found[0]

    def _replaced(self, name: str, found: tuple[str, nn.Module], folder: Path) -> str:
        if not isinstance(found[1], (nn.Linear, nn.Embedding)):
            raise ServeRefusal(
                "inference_failed",
                f"Adapter {folder} replaces the module {name} ({type(found[1]).__name__}); only linear and "
                "embedding modules can be switched per request. Serve it merged, as a model of its own.",
            )
        return found[0]

    def _check_shapes(
        self, deltas: dict[str, Delta], saved: dict[str, dict[str, Tensor]], folder: Path
    ) -> None:
        for name, delta in deltas.items():
            expected = _linear_shape(self._model.get_submodule(name))
            actual = delta.shape(expected)
            if expected != actual:
                raise _wrong_shape(folder, name, actual=actual, expected=expected)
        for name, parts in saved.items():
            own = self._model.get_submodule(name).state_dict()
            for part, tensor in parts.items():
                if part not in own or own[part].shape != tensor.shape:
                    raise _wrong_shape(
                        folder,
                        f"{name}.{part}",
                        actual=tensor.shape,
                        expected=own[part].shape if part in own else (),
                    )

    def _rescaled(self, name: str, delta: Delta, *, parts: dict[str, Tensor], folder: Path) -> Delta:
        """g (W x + s B A x) + b = g y + g s B A x + (1 - g) b          y: the module's own output, W x + b"""
        module = self._model.get_submodule(name)
        weight = cast(Tensor, module.weight).detach()
        own = (weight.to_dense() if weight.is_mkldnn else weight).float()
        up, down = cast(Tensor, delta.up_OR), cast(Tensor, delta.down_RI)
        whole = (own.t() if _is_transposed(module) else own) + up.float() @ down.float()
        magnitude = parts.get("lora_magnitude_vector.weight", parts.get("lora_magnitude_vector"))
        if magnitude is None or magnitude.shape != whole.shape[:1] or delta.bias_O is not None:
            raise ServeRefusal(
                "inference_failed",
                f"Adapter {folder} is incomplete: {name} needs a lora_magnitude_vector of {whole.shape[0]} "
                "numbers, and no bias of its own.",
            )
        gain = magnitude.float() / whole.square().sum(dim=1).sqrt()
        bias = cast("Tensor | None", module.bias)
        rest = None if bias is None else ((1 - gain) * bias.detach()).to(weight.dtype)
        up = (gain[:, None] * up).to(weight.dtype)
        return Delta(down, up.contiguous(), rest, gain.to(weight.dtype))

    def _hook(self, name: str) -> None:
        if name in self._hooked:
            return
        self._hooked.add(name)

        def adapt(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            for adapter, rows in self._groups:
                output = self._apply((name, module), adapter, (inputs[0], output), rows=rows)
            return output

        self._model.get_submodule(name).register_forward_hook(adapt)

    def _apply(
        self,
        target: tuple[str, nn.Module],
        adapter: Adapter,
        flow: tuple[Tensor, Tensor],
        *,
        rows: Tensor | None,
    ) -> Tensor:
        name, module = target
        delta, saved = adapter.deltas.get(name), adapter.saved.get(name)
        if delta is None and saved is None:
            return flow[1]
        shape = flow[1].shape
        inputs, output = (self._by_row(name, states) for states in flow)
        mine = inputs if rows is None else inputs.index_select(0, rows)
        changed = output if rows is None else output.index_select(0, rows)
        if saved is not None:
            changed = _run_saved(module, saved, mine)
        if delta is not None:
            if delta.gain_I is not None:
                changed = module.forward(mine * delta.gain_I)
            if delta.gain_O is not None:
                changed = changed * delta.gain_O
            if delta.down_RI is not None and delta.up_OR is not None:
                low = functional.linear(mine, delta.down_RI)
                changed = changed + functional.linear(low, delta.up_OR, delta.bias_O)
        return (changed if rows is None else output.index_copy(0, rows, changed)).view(shape)

    def _by_row(self, name: str, states: Tensor) -> Tensor:
        """Some models flatten batch and time: rows are told apart again, or the module cannot be switched."""
        if states.shape[0] == self._num_rows:
            return states
        if len(self._groups) == 1 and self._groups[0][1] is None:
            return states
        if states.shape[0] % self._num_rows == 0 and states.dim() == 2:
            return states.view(self._num_rows, -1, states.shape[-1])
        raise RuntimeError(
            f"module {name} does not keep the rows of a batch apart, so adapters cannot be mixed over it"
        )


def _grouped(adapters: Sequence[Adapter | None], device: torch.device) -> list[tuple[Adapter, Tensor | None]]:
    rows_of: dict[Adapter, list[int]] = {}
    for row, adapter in enumerate(adapters):
        if adapter is not None:
            rows_of.setdefault(adapter, []).append(row)
    return [
        (adapter, None if len(rows) == len(adapters) else torch.tensor(rows, device=device))
        for adapter, rows in rows_of.items()
    ]


def _run_saved(module: nn.Module, saved: dict[str, Tensor], inputs: Tensor) -> Tensor:
    own = dict(module.named_parameters())
    weight = saved.get("weight", own.get("weight"))
    if weight is None:
        raise RuntimeError(f"{type(module).__name__} has no weight")
    if isinstance(module, nn.Embedding):
        return functional.embedding(inputs, weight, module.padding_idx)
    return functional.linear(inputs, weight, saved.get("bias", own.get("bias")))


def _linear_shape(module: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear module; GPT-2's Conv1D keeps its weight transposed."""
    weight = cast(Tensor, module.weight)
    outputs, inputs = weight.shape[0], weight.shape[1]
    return (inputs, outputs) if _is_transposed(module) else (outputs, inputs)


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _stamp(folder: Path) -> tuple[int, int]:
    try:
        stat = (folder / "adapter_model.safetensors").stat()
    except OSError as error:
        raise ServeRefusal(
            "inference_failed",
            f"Adapter {folder} cannot be read: adapter_model.safetensors is missing ({error.strerror}). "
            "Only safetensors adapters in PEFT's format are loaded.",
        ) from error
    return stat.st_mtime_ns, stat.st_size


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    return cast(Any, safetensors.torch).load_file(folder / "adapter_model.safetensors")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = cast(
            dict[str, Any], json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        )
    except (OSError, ValueError) as error:
        raise ServeRefusal(
            "inference_failed", f"Adapter {folder}: adapter_config.json cannot be read: {error}"
        ) from error
    kind = config.get("peft_type")
    unsupported = [name for name in ("layer_replication", "trainable_token_indices") if config.get(name)]
    if kind not in ("LORA", "IA3", *_VIRTUAL) or unsupported:
        what = f"with {', '.join(unsupported)}" if unsupported else f"of kind {kind}"
        raise ServeRefusal(
            "inference_failed",
            f"Adapter {folder} is {what}; LoRA, rsLoRA, DoRA, IA3, prompts and prefixes are served. "
            "Merge it first.",
        )
    return config


def _split_key(key: str, folder: Path) -> tuple[str, str]:
    """`base_model.model.layers.0.q.lora_A.weight` -> (`layers.0.q`, `lora_A.weight`)."""
    bare = key.removeprefix(_PREFIX).replace(".modules_to_save.default", "").replace(".modules_to_save", "")
    found = re.fullmatch(
        r"(.+)\.(lora_[AB](?:\.default)?\.(?:weight|bias)|lora_magnitude_vector(?:\.default)?(?:\.weight)?|ia3_l(?:\.default)?)",
        bare,
    )
    if found is not None:
        return found[1], found[2].replace(".default", "")
    if "lora_" in bare or "ia3_" in bare:
        raise ServeRefusal(
            "inference_failed",
            f"Adapter {folder} holds {key}; only LoRA, DoRA and IA3 of linear modules are served.",
        )
    name, _, part = bare.rpartition(".")
    return name, part


def _delta(name: str, parts: dict[str, Tensor], *, config: dict[str, Any], folder: Path) -> Delta:
    factors = parts.get("ia3_l")
    if factors is not None:
        flat = factors.flatten()
        return Delta(gain_I=flat) if factors.shape[0] == 1 else Delta(gain_O=flat)
    down, up = parts.get("lora_A.weight"), parts.get("lora_B.weight")
    if down is None or up is None or down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
        raise ServeRefusal(
            "inference_failed", f"Adapter {folder} is incomplete: {name} needs matching lora_A and lora_B."
        )
    alphas = cast(dict[str, float], config.get("alpha_pattern") or {})
    matching = [alpha for pattern, alpha in alphas.items() if re.fullmatch(rf"(.*\.)?({pattern})", name)]
    alpha = float(matching[0] if matching else config["lora_alpha"])
    rank = down.shape[0]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    bias = parts.get("lora_B.bias")
    return Delta(down.contiguous(), (up * scale).contiguous(), None if bias is None else bias * scale)


def _wrong_shape(folder: Path, name: str, *, actual: Sequence[int], expected: Sequence[int]) -> ServeRefusal:
    return ServeRefusal(
        "inference_failed",
        f"Adapter {folder}: {name} has shape {tuple(actual)}, the base model needs {tuple(expected)}. "
        "Serve it over the base model it was trained on.",
    )
