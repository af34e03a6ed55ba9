"""Tokenised rows on disk, mapped into memory and read as they are needed; shared by the runs of a project.

A file is named after everything that changes an id, written whole or not at all, and bears its tensors'
checksum: what is torn, changed or foreign is as if it were not there. Files used longest ago go first when
all together grow beyond a bound; one that a run has mapped stays readable for that run.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from .tensor_files import TensorFileError, read_metadata, read_tensors, write_tensors

_MOST_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class TokenCache:
    folder: Path
    most_bytes: int = _MOST_BYTES

    def read(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts as they were written; None when there are none to be trusted."""
        path = self._path(key)
        try:
            metadata = read_metadata(path)
            tensors = read_tensors(path)
            if metadata["key"] != key or metadata["checksum"] != _checksum(tensors, metadata["facts"]):
                return None
            # How long ago it was used decides what goes; a folder one may only read changes nothing.
            with contextlib.suppress(OSError):
                os.utime(path)
            return tensors, cast("dict[str, Any]", json.loads(metadata["facts"]))
        except (OSError, ValueError, KeyError, TensorFileError):
            return None

    def write(self, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Raises OSError or TensorFileError (disk full)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        told = json.dumps(facts)
        try:
            write_tensors(partial, tensors, {"key": key, "facts": told, "checksum": _checksum(tensors, told)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self._evict(path)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _evict(self, kept: Path) -> None:
        """Other trainers may do the same at the same time: what is gone already is gone."""
        found: list[tuple[int, int, Path]] = []
        for path in self.folder.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                found.append((facts.st_mtime_ns, facts.st_size, path))
        size = sum(one for _, one, _ in found)
        for _, bytes_of_file, path in sorted(found):
            if size <= self.most_bytes:
                return
            if path != kept:
                path.unlink(missing_ok=True)
                size -= bytes_of_file


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    total = zlib.crc32(facts.encode())
    for name in sorted(tensors):
        content = cast("Any", tensors[name].contiguous()).numpy()
        total = zlib.crc32(content, zlib.crc32(f"{name}{content.dtype}{content.shape}".encode(), total))
    return f"{total:08x}"
