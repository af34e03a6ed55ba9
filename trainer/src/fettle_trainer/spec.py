"""What to train: one JSON file to frozen dataclasses, or SpecError naming the path and the nearest key.

Mirrors `trainSpecSchema` in packages/contract/src/trainer.ts; `json_schema()` lets a test compare the two.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

Task = Literal[
    "chat",
    "classification",
    "seq2seq",
    "multilabel_classification",
    "regression",
    "ranking",
    "token_classification",
    "question_answering",
    "embedding",
    "preference",
    "pretraining",
]
Method = Literal["full", "lora", "rslora", "dora", "qlora", "freeze", "head", "ia3", "prompt", "prefix"]
Family = Literal["decoder", "encoder", "seq2seq"]
# What computes a model's layers; see docs/gpu.md.
Layers = Literal["auto", "plain", "liger", "compiled"]


class SpecError(ValueError):
    """The spec cannot be used; the message says where, what was expected and how to mend it."""


def _number(least: float, most: float, *, above: bool = False) -> Any:
    """`above`: `least` itself is not allowed."""
    return field(metadata={"least": least, "most": most, "above": above})


def _text(most: int, least: int = 0, *, optional: bool = False) -> Any:
    """`optional`: may be left out, which is None."""
    return field(metadata={"shortest": least, "longest": most, "optional": optional})


def _texts(most: int, longest: int, *, least: int = 0, shortest: int = 0, optional: bool = False) -> Any:
    bounds = {"fewest": least, "items": most, "shortest": shortest, "longest": longest}
    return field(metadata={**bounds, "optional": optional})


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """`adapter_path`: a PEFT adapter over it; of a base it is gone on from, of a teacher it answers."""

    name: str = _text(256, 1)
    path: str = _text(4096, 1)
    family: Family = field()
    adapter_path: str | None = _text(4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    train_path: str = _text(4096)
    train_sha256: str = _text(64, 64)
    more_train_paths: tuple[str, ...] | None = _texts(18, 4096, optional=True)
    validation_path: str | None = _text(4096)
    labels: tuple[str, ...] | None = _texts(1000, 256)

    @property
    def train_paths(self) -> tuple[Path, ...]:
        return tuple(Path(path) for path in (self.train_path, *(self.more_train_paths or ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    num_train_epochs: int = _number(1, 50)
    per_device_train_batch_size: int = _number(1, 256)
    gradient_accumulation_steps: int = _number(1, 256)
    learning_rate: float = _number(0, 0.1, above=True)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = field()
    warmup_ratio: float = _number(0, 0.5)
    weight_decay: float = _number(0, 1)
    max_grad_norm: float = _number(0, 100, above=True)
    label_smoothing_factor: float = _number(0, 0.5)
    dropout: float | None = _number(0, 0.9)
    max_length: int = _number(8, 131072)
    lora_r: int = _number(1, 512)
    lora_alpha: float = _number(0, 2048, above=True)
    lora_dropout: float = _number(0, 0.9)
    target_modules: Literal["all-linear"] | tuple[str, ...] = _texts(64, 128, least=1, shortest=1)
    trainable_layers: int = _number(1, 1000)
    num_virtual_tokens: int = _number(1, 1000)
    early_stopping_patience: int = _number(0, 100)
    eval_steps: int = _number(0, 100000)
    sampling: Literal["shuffled", "balanced"] = field()
    class_weights: Literal["none", "balanced"] = field()
    target_mean: float = _number(-1e30, 1e30)
    target_std: float = _number(0, 1e30, above=True)
    beta: float = _number(0, 2, above=True)
    distill_weight: float = _number(0, 1)
    distill_temperature: float = _number(0.1, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    device: Literal["auto", "cpu", "cuda"] = field()
    dtype: Literal["auto", "float32", "bfloat16"] = field()
    num_threads: int = _number(1, 256)
    parallelism: Literal["ddp", "fsdp"] = field()
    layers: Layers | None = field(metadata={"optional": True})
    checkpoint_seconds: float = _number(0, 86400)
    checkpoint_steps: int = _number(0, 1000000)
    keep_checkpoints: int = _number(1, 100)
    heartbeat_seconds: float = _number(0.1, 60)
    cache_dir: str | None = _text(4096, optional=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    version: Literal[1] = field()
    run_id: str = _text(128, 1)
    attempt: int = _number(1, 1000000)
    task: Task = field()
    method: Method = field()
    base_model: BaseModel = field()
    teacher: BaseModel | None = field(metadata={"optional": True})
    data: Data = field()
    output_dir: str = _text(4096)
    hyperparameters: Hyperparameters = field()
    seed: int = _number(0, 2147483647)
    runtime: Runtime = field()


FAMILIES_OF_TASK: dict[Task, tuple[Family, ...]] = {
    "chat": ("decoder",),
    "classification": ("encoder", "decoder"),
    "seq2seq": ("seq2seq",),
    "multilabel_classification": ("encoder", "decoder"),
    "regression": ("encoder", "decoder"),
    "ranking": ("encoder", "decoder"),
    "token_classification": ("encoder",),
    "question_answering": ("encoder",),
    "embedding": ("encoder",),
    "preference": ("decoder",),
    "pretraining": ("decoder",),
}
# Least number of `data.labels`.
_LABELS_NEEDED: dict[Task, int] = {
    "classification": 2,
    "multilabel_classification": 1,
    "token_classification": 1,
}
# Rows with one answer each, which a teacher may give too.
_TAUGHT: tuple[Task, ...] = ("classification", "multilabel_classification", "regression")
# What uses the model's own output.
_HEADLESS: tuple[Task, ...] = ("chat", "seq2seq", "embedding", "preference", "pretraining")


def read_spec(path: Path) -> TrainSpec:
    """Raises SpecError."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"Cannot read the spec {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"The spec {path} is not JSON: {error}.") from error
    return parse_spec(value)


def parse_spec(value: object) -> TrainSpec:
    """Raises SpecError for a wrong shape, bound, or a combination that cannot work."""
    spec = cast("TrainSpec", _parse(TrainSpec, value, _Place("spec", {})))
    families = FAMILIES_OF_TASK[spec.task]
    if spec.base_model.family not in families:
        raise SpecError(
            f"spec.task {spec.task!r} cannot train a model of family {spec.base_model.family!r}: "
            f"choose a model of family {' or '.join(families)}."
        )
    needed = _LABELS_NEEDED.get(spec.task, 0)
    if len(spec.data.labels or ()) < needed:
        raise SpecError(f"spec.data.labels: {spec.task} needs at least {needed} class names.")
    if spec.method in ("prompt", "prefix") and spec.task not in ("chat", "pretraining"):
        raise SpecError(
            f"spec.method {spec.method!r} puts virtual tokens before a text that is gone on with, and task "
            f"{spec.task!r} is not: use method 'lora'."
        )
    if spec.teacher is not None and spec.task not in _TAUGHT:
        raise SpecError(
            f"spec.teacher: task {spec.task!r} learns from no teacher; leave it out. {', '.join(_TAUGHT)} do."
        )
    if spec.hyperparameters.sampling == "balanced" and spec.task != "classification":
        raise SpecError(
            f"spec.hyperparameters.sampling 'balanced' needs rows of one class each, and task {spec.task!r} "
            "has none: use 'shuffled'."
        )
    if spec.method == "head" and spec.task in _HEADLESS:
        raise SpecError(
            f"spec.method 'head' trains a new head, and task {spec.task!r} has none: "
            "use method 'lora' or 'full'."
        )
    return spec


@dataclass(frozen=True, slots=True)
class _Place:
    path: str
    bounds: Mapping[str, Any]


def _parse(kind: Any, value: Any, at: _Place) -> Any:
    if is_dataclass(kind):
        return _parse_object(cast("type[Any]", kind), value, at)
    origin = get_origin(kind)
    if origin is Literal:
        return _parse_choice(get_args(kind), value, at)
    if origin in (Union, UnionType):
        return _parse_union(get_args(kind), value, at)
    if origin is tuple:
        return _parse_texts(value, at)
    if kind is str:
        return _parse_text(value, at)
    return _parse_number(kind, value, at)


def _parse_object(kind: type[Any], value: Any, at: _Place) -> Any:
    if not isinstance(value, dict):
        raise SpecError(f"{at.path} must be an object, not {_named(value)}.")
    given = cast("dict[str, Any]", value)
    known = [one.name for one in fields(kind)]
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise SpecError(f"{at.path}.{key} is not known: {hint}")
    given = {**{one.name: None for one in fields(kind) if one.metadata.get("optional")}, **given}
    missing = [name for name in known if name not in given]
    if missing:
        raise SpecError(f"{at.path}.{missing[0]} is missing.")
    hints = get_type_hints(kind)
    return kind(
        **{
            one.name: _parse(hints[one.name], given[one.name], _Place(f"{at.path}.{one.name}", one.metadata))
            for one in fields(kind)
            if one.default is MISSING
        }
    )


def _parse_union(kinds: tuple[Any, ...], value: Any, at: _Place) -> Any:
    if value is None and NoneType in kinds:
        return None
    rest = [kind for kind in kinds if kind is not NoneType]
    if len(rest) == 1:
        return _parse(rest[0], value, at)
    texts = isinstance(value, list)
    return _parse(next(kind for kind in rest if (get_origin(kind) is tuple) == texts), value, at)


def _parse_choice(choices: tuple[Any, ...], value: Any, at: _Place) -> Any:
    if type(value) not in (str, int) or value not in choices:
        near = get_close_matches(str(value), [str(choice) for choice in choices], 1, 0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SpecError(f"{at.path} is {value!r}: expected one of {', '.join(map(repr, choices))}.{hint}")
    return value


def _parse_text(value: Any, at: _Place) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{at.path} must be text, not {_named(value)}.")
    least, most = at.bounds.get("shortest", 0), at.bounds["longest"]
    if not least <= len(value) <= most:
        raise SpecError(f"{at.path} has {len(value)} characters: expected {least} to {most}.")
    return value


def _parse_texts(value: Any, at: _Place) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise SpecError(f"{at.path} must be a list of texts, not {_named(value)}.")
    items = cast("list[Any]", value)
    least, most = at.bounds["fewest"], at.bounds["items"]
    if not least <= len(items) <= most:
        raise SpecError(f"{at.path} has {len(items)} entries: expected {least} to {most}.")
    return tuple(
        _parse_text(item, _Place(f"{at.path}[{index}]", at.bounds)) for index, item in enumerate(items)
    )


def _parse_number(kind: Any, value: Any, at: _Place) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SpecError(f"{at.path} must be a number, not {_named(value)}.")
    if kind is int and value != int(value):
        raise SpecError(f"{at.path} is {value}: expected a whole number.")
    least, most = at.bounds["least"], at.bounds["most"]
    if not least <= value <= most or (at.bounds["above"] and value == least):
        start = f"above {least:g}" if at.bounds["above"] else f"from {least:g}"
        raise SpecError(f"{at.path} is {value:g}: expected {start} to {most:g}.")
    return int(value) if kind is int else float(value)


def _named(value: Any) -> str:
    names = {
        "dict": "an object",
        "list": "a list",
        "str": "text",
        "NoneType": "null",
        "bool": "true or false",
    }
    return names.get(type(value).__name__, repr(value))


def json_schema(kind: Any = TrainSpec, bounds: dict[str, Any] | None = None) -> dict[str, Any]:
    """JSON Schema of a spec as this file reads it."""
    limits = bounds or {}
    if is_dataclass(kind):
        hints = get_type_hints(cast("type[Any]", kind))
        return {
            "type": "object",
            "properties": {
                one.name: json_schema(hints[one.name], dict(one.metadata)) for one in fields(kind)
            },
            "required": [one.name for one in fields(kind) if not one.metadata.get("optional")],
            "additionalProperties": False,
        }
    origin = get_origin(kind)
    if origin is Literal:
        return {"enum": list(get_args(kind))}
    if origin in (Union, UnionType):
        return {"anyOf": [json_schema(one, limits) for one in get_args(kind)]}
    if origin is tuple:
        item = {"type": "string", "minLength": limits["shortest"], "maxLength": limits["longest"]}
        return {"type": "array", "items": item, "minItems": limits["fewest"], "maxItems": limits["items"]}
    if kind is NoneType:
        return {"type": "null"}
    if kind is str:
        return {"type": "string", "minLength": limits["shortest"], "maxLength": limits["longest"]}
    least = "exclusiveMinimum" if limits["above"] else "minimum"
    return {"type": "integer" if kind is int else "number", least: limits["least"], "maximum": limits["most"]}
