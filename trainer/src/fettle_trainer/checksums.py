"""What files are, in a few bytes. Light to import."""

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

_PIECE = 1 << 23
_SETTLED_SECONDS = 5
# By path, inode, size and time of change (not of writing, which whoever copies a file may set).
_crcs: dict[tuple[str, int, int, int], int] = {}


def file_sha256(*paths: Path) -> str:
    """Of their bytes, one file after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def tokenizer_sha256(folder: Path) -> str:
    """Of every file a tokenizer is made from."""
    digest = hashlib.sha256()
    kinds = (".json", ".txt", ".model", ".jinja", ".spm")
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in kinds and "index" not in path.name:
            digest.update(path.name.encode() + b"\0" + file_sha256(path).encode())
    return digest.hexdigest()


def weights_checksum(
    folder: Path, patterns: Sequence[str], check: Callable[[], object] = lambda: None
) -> str:
    """Of names, sizes and CRC-32: a fetch that brought another revision is meant, not an attacker, and
    gigabytes of weights are read as fast as they come. Once in a process, while a file stays as it is.
    `check` is called with each 8 MiB; what it raises ends the reading."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        facts = path.stat()
        digest.update(f"{path.name}\0{facts.st_size}\0{_crc32(path, facts, check)}\n".encode())
    return digest.hexdigest()


def _crc32(path: Path, facts: os.stat_result, check: Callable[[], object]) -> int:
    file = (str(path.resolve()), facts.st_ino, facts.st_size, facts.st_ctime_ns)
    known = _crcs.get(file)
    if known is not None:
        return known
    crc = 0
    with path.open("rb") as content:
        while piece := content.read(_PIECE):
            crc = zlib.crc32(piece, crc)
            check()
    # A file just changed may change again without its time telling.
    if time.time() - facts.st_ctime > _SETTLED_SECONDS:
        _crcs[file] = crc
    return crc


def _code_sha256() -> str:
    package = Path(__file__).parent
    told = [f"{path.name} {file_sha256(path)}" for path in sorted(package.glob("**/*.py"))]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


# Of this package. Read as the code is loaded: a process that waited through an upgrade has the old code.
CODE_SHA256 = _code_sha256()
