"""Damaged checkpoints, a full disk, planted files."""

import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import chat_rows, make_decoder, make_spec, write_rows
from training import events_of, of_type, train

from fettle_trainer.checkpoint import Checkpoint, CheckpointFolder, DamagedCheckpoint, Progress, rng_tensors


def progress(step: int) -> Progress:
    return Progress(
        fingerprint="f",
        dtype="float32",
        step=step,
        epoch=0,
        window=step,
        num_tokens=step * 10,
        train_seconds=float(step),
        evaluated_step=0,
        best_step=0,
        best_loss=None,
        evaluations_without_gain=0,
    )


def checkpoint(step: int, size: int = 64) -> Checkpoint:
    return Checkpoint(
        progress(step),
        {"w": torch.full((size,), float(step))},
        {"w.exp_avg": torch.ones(size)},
        rng_tensors(),
    )


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    made = CheckpointFolder(tmp_path / "checkpoints", keep=3)
    for step in (1, 2):
        made.save(checkpoint(step))
    return made


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "bit flipped": flip_a_bit,
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "missing": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
}


FILES = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("case", [f"{file}: {damage}" for file in FILES for damage in DAMAGES])
def test_damaged_checkpoint_is_set_aside(folder: CheckpointFolder, tmp_path: Path, case: str) -> None:
    file, damage = case.split(": ")
    root = tmp_path / "checkpoints"
    DAMAGES[damage](root / "2" / file)
    newest, notes = folder.newest()
    assert newest is not None
    assert newest.progress == progress(1)
    assert torch.equal(newest.weights["w"], torch.full((64,), 1.0))
    assert "Checkpoint 2 is damaged" in notes[0]
    assert (root / "2.damaged-1").is_dir()
    # The step is trained and saved again, and again found damaged: nothing is overwritten.
    folder.save(checkpoint(2))
    DAMAGES[damage](root / "2" / file)
    assert folder.newest()[0] is not None
    assert (root / "2.damaged-2").is_dir()


def test_hash_of_a_changed_manifest_does_not_match(folder: CheckpointFolder, tmp_path: Path) -> None:
    manifest = tmp_path / "checkpoints" / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"bytes": ', '"bytes": 1'))
    with pytest.raises(DamagedCheckpoint, match="has not the"):
        folder.load(2)


def test_everything_comes_back(folder: CheckpointFolder) -> None:
    torch.manual_seed(5)
    saved = checkpoint(3)
    folder.save(saved)
    newest, notes = folder.newest()
    assert newest is not None
    assert notes == []
    assert newest.progress == saved.progress
    assert torch.equal(newest.optimiser["w.exp_avg"], saved.optimiser["w.exp_avg"])
    assert torch.equal(newest.rng["cpu"], saved.rng["cpu"])


def test_half_written_folder_is_not_a_checkpoint(folder: CheckpointFolder, tmp_path: Path) -> None:
    partial = tmp_path / "checkpoints" / ".partial-3"
    shutil.copytree(tmp_path / "checkpoints" / "2", partial)
    newest, _ = folder.newest()
    assert newest is not None
    assert newest.progress.step == 2
    assert not partial.exists()


def test_oldest_go_and_the_best_stays(folder: CheckpointFolder, tmp_path: Path) -> None:
    for step in (3, 4, 5):
        folder.save(checkpoint(step))
    folder.prune(best_step=1)
    assert folder.steps() == [1, 3, 4, 5]


def test_planted_pickle_is_never_opened(folder: CheckpointFolder, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    for name in ("optimizer.pt", "pytorch_model.bin", "rng_state.pth", "model.safetensors.index.json"):
        (tmp_path / "checkpoints" / "2" / name).write_bytes(pickle.dumps(Bomb()))
    newest, _ = folder.newest()
    assert newest is not None
    assert newest.progress.step == 2
    assert not (tmp_path / "exploded").exists()


def test_pickle_in_place_of_the_weights_is_damage(folder: CheckpointFolder, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "2" / "model.safetensors").write_bytes(pickle.dumps({"w": 1}))
    newest, _ = folder.newest()
    assert newest is not None
    assert newest.progress.step == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_keeps_the_previous_checkpoint(small_disk: Path, tmp_path: Path) -> None:
    model = make_decoder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(40))
    output = small_disk / "run"
    spec = make_spec(
        model, rows, output, method="full", runtime__checkpoint_steps=1, runtime__keep_checkpoints=100,
        hyperparameters__num_train_epochs=3,
    )  # fmt: skip
    code, events = train(spec)
    assert code == 74
    assert (events[-1]["type"], events[-1]["reason"]) == ("stopped", "disk_full")
    told = of_type(events, "checkpoint")
    assert told
    newest, notes = CheckpointFolder(output / "checkpoints", 100).newest()
    assert newest is not None
    assert notes == []
    assert newest.progress.step == told[-1]["step"]
    assert not list(output.glob("checkpoints/.partial-*"))
    # Space is made, and the run goes on from there to the end.
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    code, events = train({**spec, "attempt": 2})
    assert code == 0, of_type(events, "failed")
    assert of_type(events, "started")[-1]["resumed_from_step"] == told[-1]["step"]
    assert events_of(spec)[-1]["type"] == "verified"
