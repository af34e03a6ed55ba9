"""safetensors files and plain lists of tensors, typed. Nothing here can run code from a file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
from torch import Tensor

_library = cast("Any", safetensors)
_torch = cast("Any", safetensors.torch)

# What reading a damaged file raises.
TensorFileError = cast("type[Exception]", _library.SafetensorError)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Written and synced to disk. Raises OSError or TensorFileError (disk full)."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _torch.save_file(contiguous, str(path), metadata=dict(metadata or {"format": "pt"}))
    sync(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises OSError or TensorFileError."""
    return cast("dict[str, Tensor]", _torch.load_file(str(path)))


class TensorFile(Mapping[str, Tensor]):
    """Tensors of a file, each read into memory of its own when it is asked for, and again when asked again:
    whoever copies them one by one never holds all. Opening raises OSError or TensorFileError."""

    def __init__(self, path: Path) -> None:
        self._file = _library.safe_open(str(path), framework="pt", backend="pread")
        self._names = dict.fromkeys(cast("list[str]", self._file.keys()))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return cast("Tensor", self._file.get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_metadata(path: Path) -> dict[str, str]:
    """Raises OSError or TensorFileError."""
    with _library.safe_open(str(path), framework="pt") as file:
        return cast("dict[str, str]", file.metadata() or {})


def sync(path: Path) -> None:
    """A file's or folder's content is on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parts_of(tensor: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Along the first axis."""
    return cast("Any", tensor).split(list(sizes))


def integers(tensor: Tensor) -> list[int]:
    """A one-dimensional integer tensor as a list."""
    return cast("list[int]", cast("Any", tensor).tolist())
