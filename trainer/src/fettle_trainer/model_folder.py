"""What a model folder may hold. Checked before anything of it is loaded.

Loading a model must never run code or follow a link of its author: only safetensors, JSON, tokenizers.
"""

import json
import struct
from pathlib import Path
from typing import Any, cast

from .failure import TrainFailure

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".msgpack", ".h5", ".npy", ".npz")
_CODE = (".py", ".pyc", ".so", ".dll", ".dylib", ".sh")
_MOST_HEADER_BYTES = 10 * 1024 * 1024
_MOST_TENSORS = 20_000
_WIDTHS = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
}


def check_model_folder(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises TrainFailure (`model_not_found`, `incompatible_method`)."""
    if not (folder / "config.json").is_file():
        raise TrainFailure(
            "model_not_found",
            f"{folder} holds no model: config.json is missing.",
            "Give the folder that holds config.json, the tokenizer and model.safetensors.",
        )
    weights = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    for path in sorted(weights):
        _check_file(path, folder)
    if not any(path.suffix == ".safetensors" for path in weights):
        raise _refused(folder, "it has no .safetensors file", "Save the model with safe_serialization=True.")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"):
        _check_config(folder, name)
    return read_object(folder / "config.json")


def check_adapter_folder(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a PEFT adapter. Raises TrainFailure."""
    if not (folder / "adapter_config.json").is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise TrainFailure(
            "model_not_found",
            f"{folder} holds no adapter: adapter_config.json or adapter_model.safetensors is missing.",
            "Give the artefact folder of a LoRA run.",
        )
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_symlink():
            _check_file(path, folder)
    _check_config(folder, "adapter_config.json")
    return read_object(folder / "adapter_config.json")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises TrainFailure."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(
            path.parent, f"{path.name} cannot be read: {error}", "Put the original file back."
        ) from error
    if not isinstance(value, dict):
        raise _refused(path.parent, f"{path.name} is not a JSON object", "Put the original file back.")
    return cast("dict[str, Any]", value)


def _check_file(path: Path, folder: Path) -> None:
    name = path.relative_to(folder)
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve().parent):
        raise _refused(folder, f"{name} is a link to outside", "Copy the file into the folder.")
    if path.suffix.lower() in _PICKLES:
        raise _refused(folder, f"{name} may run code when loaded", "Delete it; safetensors hold the weights.")
    if path.suffix.lower() in _CODE:
        raise _refused(
            folder, f"{name} is program code", "Delete it; models with their own code are not loaded."
        )
    if path.suffix == ".safetensors":
        check_safetensors(path)


def _check_config(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        return
    for key, value in _walk(read_object(folder / name)):
        if key == "auto_map" and value:
            raise _refused(folder, f"{name} has auto_map, which loads program code", "Remove auto_map.")
        if (
            key.startswith(("_attn_implementation", "attn_implementation", "_experts_implementation"))
            and value
        ):
            raise _refused(folder, f"{name} has {key}, which may fetch code", f"Remove {key}.")


def _walk(value: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            entries = list(cast("dict[str, Any]", one).items())
            found += entries
            waiting += [item for _, item in entries]
        elif isinstance(one, list):
            waiting += cast("list[Any]", one)
    return found


def check_safetensors(path: Path) -> None:
    """Reads the header alone: bounded, inside the file, no overlaps. Raises TrainFailure."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else _MOST_HEADER_BYTES + 1
        if length > _MOST_HEADER_BYTES or 8 + length > size:
            raise _broken(path, "its header is longer than the file or than 10 MB")
        try:
            header: Any = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise _broken(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not an object")
    tensors = {key: item for key, item in cast("dict[str, Any]", header).items() if key != "__metadata__"}
    if len(tensors) > _MOST_TENSORS:
        raise _broken(path, f"it lists {len(tensors)} tensors, more than {_MOST_TENSORS}")
    position = 0
    for name, start, end, expected in sorted(map(_extent, tensors.items()), key=lambda extent: extent[1]):
        if (
            start != position
            or end < start
            or 8 + length + end > size
            or end - start != (expected or end - start)
        ):
            raise _broken(path, f"tensor {name!r} does not lie where its header says")
        position = end
    if 8 + length + position != size:
        raise _broken(path, f"it has {size} bytes, its header promises {8 + length + position}")


def _extent(entry: tuple[str, Any]) -> tuple[str, int, int, int | None]:
    """Name, start, end, and the bytes its shape asks for (None: a type we do not know)."""
    name, item = entry
    try:
        start, end = (int(offset) for offset in item["data_offsets"])
        width = _WIDTHS.get(item["dtype"])
        count = 1
        for extent in item["shape"]:
            count *= int(extent)
    except (KeyError, TypeError, ValueError):
        return name, -1, -1, None
    return name, start, end, None if width is None else count * width


def _broken(path: Path, why: str) -> TrainFailure:
    return _refused(path.parent, f"{path.name} is damaged: {why}", "Fetch the file again.")


def _refused(folder: Path, why: str, fix: str) -> TrainFailure:
    return TrainFailure("incompatible_method", f"The model in {folder} is not loaded: {why}.", fix)
