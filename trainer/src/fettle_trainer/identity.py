"""What decides the bits of a run. Attempts of one run have the same; a checkpoint keeps it, so that a
resume of anything else is refused with the difference."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from .checksums import file_sha256, tokenizer_sha256, weights_checksum
from .failure import TrainFailure
from .spec import TrainSpec

Identity = dict[str, Any]

# Where and on what a run goes on: another folder, another number of threads or ranks gives the same model.
_INDIFFERENT = ("attempt", "output_dir", "runtime", "run_id", "data", "base_model", "teacher")
_MOST_TOLD = 6


def base_checksum(folder: Path, check: Callable[[], object] = lambda: None) -> str:
    """Of a base model's weights. `check`: as for `weights_checksum`."""
    return weights_checksum(folder, ("config.json", "*.safetensors"), check)


def weights_of(identity: Identity) -> str:
    """A name of the weights that a run begins from."""
    return f"{identity['base_model.weights']} {identity['base_model.adapter']}"


def identity_of(spec: TrainSpec) -> Identity:
    """JSON values by dotted name. Reads the rows and every weight once. Raises TrainFailure when the training
    rows are not those the spec was made for."""
    data, base = spec.data, spec.base_model
    rows = file_sha256(*data.train_paths)
    if rows != data.train_sha256:
        raise TrainFailure(
            "file_not_usable",
            f"The training rows have changed: SHA-256 {rows[:8]}…, not {data.train_sha256[:8]}….",
            "Start a new run from the file as it is now.",
        )
    decisive = {name: value for name, value in asdict(spec).items() if name not in _INDIFFERENT}
    folder = Path(base.path)
    decisive["data"] = {
        "training rows": rows,
        "validation rows": data.validation_path and file_sha256(Path(data.validation_path)),
        "labels": data.labels,
    }
    decisive["base_model"] = {
        "name": base.name,
        "family": base.family,
        "weights": base_checksum(folder),
        "tokenizer": tokenizer_sha256(folder) if folder.is_dir() else None,
        "adapter": base.adapter_path and weights_checksum(Path(base.adapter_path), ("adapter_*",)),
    }
    if spec.teacher is not None:
        taught_by, own = Path(spec.teacher.path), spec.teacher.adapter_path
        decisive["teacher"] = {
            "weights": weights_checksum(taught_by, ("config.json", "fettle.json", "*.safetensors")),
            "tokenizer": tokenizer_sha256(taught_by) if taught_by.is_dir() else None,
            "adapter": own and weights_checksum(Path(own), ("adapter_*", "fettle.json")),
        }
    # Through JSON and back: what a checkpoint gives is compared with it.
    return cast("Identity", json.loads(json.dumps(dict(_flat(decisive, "")))))


def begin_identity(spec: TrainSpec) -> Callable[[], Identity]:
    """`identity_of`, found in a thread: checksums leave Python's lock to whoever loads beside them. What it
    raises is raised where it is asked for."""
    pool = ThreadPoolExecutor(1, "identity")
    found = pool.submit(identity_of, spec)
    pool.shutdown(wait=False)
    return found.result


def fingerprint_of(identity: Identity) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def another_run(output: Path, before: Identity, now: Identity) -> TrainFailure:
    """Why the checkpoints in `output`, of a run that was `before`, are not gone on from."""
    changed = _differences(before, now) or "its rules changed"
    return TrainFailure(
        "conflict",
        f"The checkpoints in {output} are of another run: {changed}.",
        "Put it back as it was to go on, or give the new run an output_dir of its own.",
    )


def _differences(before: Identity, now: Identity) -> str:
    """`hyperparameters.learning_rate was 0.01 and is 0.02; ...`; empty where there is nothing to tell."""
    if not before:
        return ""
    names = [*before, *(name for name in now if name not in before)]
    told = [
        f"{name} was {_shown(before.get(name))} and is {_shown(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    more = len(told) - _MOST_TOLD
    return "; ".join(told[:_MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")


def _flat(value: Mapping[str, Any], prefix: str) -> Sequence[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, one in value.items():
        if isinstance(one, dict):
            found += _flat(cast("dict[str, Any]", one), f"{prefix}{name}.")
        else:
            found.append((prefix + name, one))
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str) and len(value) == 64:
        return f"SHA-256 {value[:8]}…"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"
