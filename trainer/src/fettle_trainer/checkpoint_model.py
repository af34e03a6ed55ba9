"""A checkpoint as a model: the weights of one step, written as the run would have written its artefact.

A checkpoint holds what a resume needs: trained weights and the optimiser's state. What an answer needs beside
them (base, tokenizer, labels) comes from where the run began: the folder is made when it is first asked for.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import artefact
from .checkpoint import Checkpoint, CheckpointFolder, DamagedCheckpoint
from .device import Compute, dtype_of
from .failure import TrainFailure
from .models import load_for_training
from .spec import TrainSpec


@dataclass(frozen=True, slots=True)
class Start:
    """Where the run began, as it lies on this disk now: the spec's own paths may be of another place."""

    base: Path
    adapter: Path | None


def export_checkpoint(spec: TrainSpec, run: Path, step: int, *, start: Start, out: Path) -> None:
    """Writes checkpoint `step` of the run folder `run` as an artefact. One that is there already stays.
    Raises TrainFailure (`model_unavailable`: pruned or damaged), OSError, TensorFileError (disk full)."""
    with _alone(out):
        if (out / "fettle.json").is_file():
            return
        checkpoint = _load(run, step)
        moved = replace(
            spec.base_model, path=str(start.base), adapter_path=start.adapter and str(start.adapter)
        )
        of_here = replace(spec, base_model=moved)
        dtype = dtype_of(checkpoint.progress.dtype)
        # The adapter alone is written: its base need not be made small again, nor bitsandbytes be there.
        whole = replace(of_here, method="lora") if spec.method == "qlora" else of_here
        loaded = load_for_training(whole, Compute(torch.device("cpu"), dtype, "as in training"))
        trainable = loaded.trainable()
        if trainable.keys() != checkpoint.weights.keys():
            raise _unavailable(step, "its weights do not fit the model that its run began with")
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(checkpoint.weights[name])
        artefact.write_model(loaded, of_here, out)


def _load(run: Path, step: int) -> Checkpoint:
    try:
        return CheckpointFolder(run / "checkpoints", 1).load(step)
    except DamagedCheckpoint as error:
        raise _unavailable(step, str(error)) from error


def _unavailable(step: int, why: str) -> TrainFailure:
    return TrainFailure(
        "model_unavailable",
        f"The checkpoint of step {step} cannot be used as a model: {why}.",
        "Use another checkpoint, or the run's model.",
    )


@contextmanager
def _alone(out: Path) -> Generator[None]:
    """One writer of a run's models at a time, whichever process it is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out.parent / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
