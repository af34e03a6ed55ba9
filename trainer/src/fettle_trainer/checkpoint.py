"""Checkpoints: a new folder each, whole or not there.

    checkpoints/.partial-<step>/  files, each synced ── manifest.json with their hashes, last
    checkpoints/<step>/           the same folder, renamed

A folder without a manifest that matches is set aside as `<step>.damaged-<n>` and the one before is used. Only
the files named here are ever read; whatever else lies in the folder is not.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .divergence import LossTrend
from .identity import Identity, fingerprint_of
from .tensor_files import TensorFile, TensorFileError, sync, write_tensors

WEIGHTS = "model.safetensors"
OPTIMISER = "optimizer.safetensors"
RNG = "rng.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
_FILES = (WEIGHTS, OPTIMISER, RNG, STATE)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands between two optimiser steps. `fingerprint` ties it to spec, model and rows, which
    `identity` holds by name. `rows_per_batch`: of a micro-batch; fewer than asked for if memory was short.
    `layers`: what computed the model's layers, as it is told."""

    fingerprint: str
    dtype: str
    step: int
    epoch: int
    window: int
    num_tokens: int
    train_seconds: float
    evaluated_step: int
    best_step: int
    best_loss: float | None
    evaluations_without_gain: int
    identity: dict[str, Any] = field(default_factory=dict[str, Any])
    rows_per_batch: int = 1
    trend: LossTrend = field(default_factory=LossTrend)
    layers: str = ""

    @classmethod
    def begin(cls, identity: Identity, *, dtype: str, rows_per_batch: int, layers: str) -> "Progress":
        return cls(
            fingerprint=fingerprint_of(identity),
            identity=identity,
            dtype=dtype,
            rows_per_batch=rows_per_batch,
            layers=layers,
            step=0,
            epoch=0,
            window=0,
            num_tokens=0,
            train_seconds=0.0,
            evaluated_step=0,
            best_step=0,
            best_loss=None,
            evaluations_without_gain=0,
        )

    def after_step(self, *, num_tokens: int, seconds: float, steps_per_epoch: int) -> "Progress":
        last = self.window + 1 == steps_per_epoch
        return replace(
            self,
            step=self.step + 1,
            epoch=self.epoch + last,
            window=0 if last else self.window + 1,
            num_tokens=self.num_tokens + num_tokens,
            train_seconds=self.train_seconds + seconds,
        )

    def after_evaluation(self, loss: float) -> "Progress":
        best = self.best_loss is None or loss < self.best_loss
        return replace(
            self,
            evaluated_step=self.step,
            best_step=self.step if best else self.best_step,
            best_loss=loss if best else self.best_loss,
            evaluations_without_gain=0 if best else self.evaluations_without_gain + 1,
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that was loaded reads each tensor when it is asked for."""

    progress: Progress
    weights: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    rng: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Saved:
    """`sha256` is of the manifest, and so of everything."""

    path: Path
    sha256: str


class CheckpointFolder:
    def __init__(self, root: Path, keep: int) -> None:
        self._root = root
        self._keep = keep

    def save(self, checkpoint: Checkpoint) -> Saved:
        """Raises OSError or TensorFileError when the disk is full; nothing is left of the attempt then."""
        step = checkpoint.progress.step
        final = self._root / str(step)
        known = _manifest_sha256(final) if final.is_dir() else None
        if known is not None:
            return Saved(final, known)  # trained twice up to here, after a stop: the same bits
        self._root.mkdir(parents=True, exist_ok=True)
        partial = self._root / f".partial-{step}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            write_tensors(partial / WEIGHTS, checkpoint.weights)
            write_tensors(partial / OPTIMISER, checkpoint.optimiser)
            write_tensors(partial / RNG, checkpoint.rng)
            _write_json(partial / STATE, asdict(checkpoint.progress))
            manifest = {name: _entry(partial / name) for name in _FILES}
            _write_json(partial / MANIFEST, {"version": 1, "files": manifest})
            sync(partial)
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(self._root)
        return Saved(final, _sha256(final / MANIFEST))

    def newest(self, *, mend: bool = True) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and why newer ones were set aside. Without `mend` these stay as they
        are, and so does what a killed writer left: another rank sees to it."""
        notes: list[str] = []
        if not self._root.is_dir():
            return None, notes
        for leftover in self._root.glob(".partial-*") if mend else ():
            shutil.rmtree(leftover, ignore_errors=True)
        for step in reversed(self.steps()):
            try:
                return self.load(step), notes
            except DamagedCheckpoint as error:
                if not mend:
                    continue
                aside = self._set_aside(step)
                notes.append(
                    f"Checkpoint {step} is damaged ({error}); kept as {aside.name}, the one before is used."
                )
        return None, notes

    def load(self, step: int) -> Checkpoint:
        """Raises DamagedCheckpoint."""
        folder = self._root / str(step)
        try:
            _verify(folder)
            state = cast("dict[str, Any]", json.loads((folder / STATE).read_text(encoding="utf-8")))
            return Checkpoint(
                _progress(state),
                TensorFile(folder / WEIGHTS),
                TensorFile(folder / OPTIMISER),
                TensorFile(folder / RNG),
            )
        except (OSError, ValueError, TypeError, KeyError, TensorFileError) as error:
            raise DamagedCheckpoint(str(error)) from error

    def steps(self) -> list[int]:
        """Of all checkpoints, whole or not, ascending."""
        if not self._root.is_dir():
            return []
        return sorted(
            int(path.name) for path in self._root.iterdir() if path.is_dir() and path.name.isdigit()
        )

    def prune(self, best_step: int) -> None:
        """Keeps the newest, as many as asked, and the best."""
        for step in self.steps()[: -self._keep]:
            if step != best_step:
                shutil.rmtree(self._root / str(step), ignore_errors=True)

    def _set_aside(self, step: int) -> Path:
        number = 1
        while (aside := self._root / f"{step}.damaged-{number}").exists():
            number += 1
        (self._root / str(step)).rename(aside)
        return aside


class DamagedCheckpoint(Exception):
    """A file is missing, cut short or altered; the text says which."""


def rng_tensors() -> dict[str, Tensor]:
    """State of every random generator in use, as raw bytes."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_rng(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda.0" in states:
        torch.cuda.set_rng_state_all([states[f"cuda.{index}"] for index in range(torch.cuda.device_count())])


def _verify(folder: Path) -> None:
    manifest = cast("dict[str, Any]", json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    files = cast("dict[str, dict[str, Any]]", manifest["files"])
    for name in _FILES:
        found = _entry(folder / name)
        if found != files[name]:
            raise DamagedCheckpoint(f"{name} has not the {files[name]['bytes']} bytes that were written")


def _manifest_sha256(folder: Path) -> str | None:
    try:
        _verify(folder)
    except (OSError, ValueError, KeyError, DamagedCheckpoint):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return _sha256(folder / MANIFEST)


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _progress(state: dict[str, Any]) -> Progress:
    trend: Any = LossTrend(**state.get("trend", {}))
    return Progress(**{**state, "trend": trend})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
