"""What a run leaves: an adapter or a whole model folder, with fettle.json; and the proof that it loads."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from . import adapter_kinds
from .adapters import keep_in_four_bits
from .checksums import file_sha256
from .data import TokenRows
from .device import dtype_name, dtype_of
from .failure import TrainFailure
from .light_torch import without_sharding
from .model_folder import check_adapter_folder, check_model_folder
from .models import Loaded, load_model, load_prompts, pooling_of, start_id
from .spec import Family, Task, TrainSpec
from .step import Stepper
from .tensor_files import read_metadata, read_tensors, sync, write_tensors

FOLDER = "artefact"
_PROBE_ROWS = 4
# Largest difference of a logit, as a share of the largest logit. Packed and single rows sum in another order.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
VERIFY_SECONDS = 1800


def export(loaded: Loaded, spec: TrainSpec, output_dir: Path) -> Path:
    """Writes <output_dir>/artefact, whole or not at all. Raises OSError, TensorFileError (disk full)."""
    return write_model(loaded, spec, output_dir / FOLDER)


def write_model(loaded: Loaded, spec: TrainSpec, final: Path) -> Path:
    """Writes the folder `final`, whole or not at all. Raises OSError, TensorFileError (disk full)."""
    with written_whole(final) as partial:
        if loaded.adapter is not None:
            model, adapter = loaded.model, loaded.adapter
            write_tensors(partial / "adapter_model.safetensors", adapter_kinds.tensors_of(model, adapter))
            config = adapter_kinds.config_of(model, adapter, task=spec.task, base_name=spec.base_model.path)
            write_json(partial / "adapter_config.json", config)
        else:
            save_model(loaded.model, loaded.prompts.raw, partial)
            if spec.task == "embedding":
                write_pooling(partial, loaded)
        write_json(partial / "fettle.json", _facts(loaded, spec))
    return final


def write_pooling(folder: Path, loaded: Loaded) -> None:
    """The files by which sentence-transformers and our own serving know how vectors are made."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    pooling = {
        "word_embedding_dimension": int(loaded.model.config.hidden_size),
        "pooling_mode_cls_token": loaded.pooling == "cls",
        "pooling_mode_mean_tokens": loaded.pooling == "mean",
        "pooling_mode_max_tokens": False,
    }
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": loaded.max_length, "do_lower_case": False}
    )
    write_json(folder / "modules.json", modules)


@contextmanager
def written_whole(final: Path) -> Generator[Path]:
    """A folder beside `final`: it takes its place when the block ends well, and is gone when it does not."""
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(final.parent)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """A folder every tool of the Hugging Face family loads."""
    with without_sharding():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        if path.is_file():
            sync(path)


def folder_sha256(folder: Path) -> str:
    """Of names and contents of all files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _facts(loaded: Loaded, spec: TrainSpec) -> dict[str, Any]:
    generation = getattr(loaded.model, "generation_config", None)
    return {
        "version": 1,
        "run_id": spec.run_id,
        "task": spec.task,
        "method": spec.method,
        "family": spec.base_model.family,
        "base_model": spec.base_model.name,
        "labels": None if spec.data.labels is None else list(spec.data.labels),
        "stop_token_ids": loaded.prompts.stop_ids(getattr(generation, "eos_token_id", None)),
        "chat_template_sha256": loaded.prompts.template_hash(),
        "max_length": loaded.max_length,
        "target": _target(spec),
    }


def _target(spec: TrainSpec) -> dict[str, float] | None:
    """What the model's number is multiplied by and what is added then."""
    if spec.task != "regression":
        return None
    return {"mean": spec.hyperparameters.target_mean, "std": spec.hyperparameters.target_std}


# ---------------------------------------------------------------- proof


def write_probe(path: Path, stepper: Stepper, rows: TokenRows) -> None:
    """A few rows and the answers of the model in memory, before it is forgotten."""
    chosen = sorted(range(len(rows)), key=lambda row: (rows.lengths[row], row))[:_PROBE_ROWS]
    some = rows.select(chosen)
    logits = stepper.answers(some, range(len(some)))
    facts = {"task": stepper.task, "dtype": dtype_name(stepper.dtype), "device": stepper.device.type}
    write_tensors(path, {**some.tensors(), "logits": logits}, facts)


def verify_in_fresh_process(artefact: Path, base: Path, probe: Path) -> float:
    """Largest difference. Raises TrainFailure (`artefact_mismatch`) when it is too large or loading fails."""
    command = [sys.executable, "-m", "fettle_trainer", "verify", "--json"]
    command += ["--artefact", str(artefact), "--base", str(base), "--probe", str(probe)]
    package = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=VERIFY_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise mismatch(f"it could not be loaded: {done.stderr.strip()[-800:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["max_abs_diff"])


def verify(artefact: Path, base: Path, probe: Path) -> float:
    """Loads the artefact and answers the probe row by row, unpacked. Raises TrainFailure. An adapter trained
    over a base in 4 bits is asked over such a base: rounding is not what is to be found here."""
    facts = read_metadata(probe)
    stored = read_tensors(probe)
    expected = stored.pop("logits")
    rows = TokenRows.of(stored)
    task, dtype = cast("Task", facts["task"]), dtype_of(facts["dtype"])
    loaded = load_artefact(artefact, base, dtype)
    if _read_facts(artefact)["method"] == "qlora":
        keep_in_four_bits(loaded.model, loaded.head_modules, torch.device(facts["device"]))
    loaded.model.to(facts["device"])
    stepper = Stepper(loaded, task, dtype=dtype)
    answers = torch.cat([stepper.answers(rows, [row]) for row in range(len(rows))])
    difference = float((answers - expected).abs().max())
    allowed = _TOLERANCE[facts["dtype"]] * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise mismatch(f"its answers differ by {difference:.3g}, more than {allowed:.3g}")
    return difference


def load_artefact(artefact: Path, base: Path, dtype: torch.dtype) -> Loaded:
    """The tuned model for answering, from an adapter folder and its base, or from a whole model folder."""
    facts = _read_facts(artefact)
    task, family = cast("Task", facts["task"]), cast("Family", facts["family"])
    labels = None if facts["labels"] is None else tuple(cast("list[str]", facts["labels"]))
    is_adapter = (artefact / "adapter_config.json").is_file()
    folder = base if is_adapter else artefact
    check_model_folder(folder)
    model, heads = load_model(folder, task, labels=labels, dtype=dtype if is_adapter else torch.float32)
    settings = None
    if is_adapter:
        check_adapter_folder(artefact)
        settings, tensors = adapter_kinds.read_adapter(artefact)
        adapter_kinds.attach(model, settings, seed=0)
        adapter_kinds.load(model, settings, tensors)
    model.eval()
    prompts = load_prompts(folder)
    pad = prompts.raw.pad_token_id
    return Loaded(
        model=model,
        prompts=prompts,
        family=family,
        head_modules=heads,
        packed=False,
        adapter=settings,
        max_length=int(facts["max_length"]),
        pad_id=0 if pad is None else pad,
        start_id=start_id(model, prompts, pad or 0),
        pooling=pooling_of(folder, task),
    )


def _read_facts(artefact: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((artefact / "fettle.json").read_text(encoding="utf-8")))


def merge(base: Path, adapter: Path, out: Path) -> float:
    """Writes base plus adapter as a whole model folder; returns the largest change of a logit by merging.
    Raises TrainFailure, also when that change is too large; nothing is written then."""
    if out.exists() and any(out.iterdir()):
        raise TrainFailure("conflict", f"{out} exists and is not empty.", "Give a new folder.")
    loaded = load_artefact(adapter, base, torch.float32)
    size = int(loaded.model.config.get_text_config().vocab_size)
    ids = torch.randint(0, size, (1, 16), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids}
    if loaded.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :4]
    with torch.no_grad():
        apart = cast("Tensor", loaded.model(**inputs)[0])
        if loaded.adapter is not None:
            adapter_kinds.merge(loaded.model, loaded.adapter)
        together = cast("Tensor", loaded.model(**inputs)[0])
    difference = float((apart - together).abs().max())
    allowed = _TOLERANCE["float32"] * max(1.0, float(apart.abs().max()))
    if not difference <= allowed:
        raise mismatch(f"merging changes its answers by {difference:.3g}, more than {allowed:.3g}")
    facts = _read_facts(adapter)
    with written_whole(out) as partial:
        save_model(loaded.model, loaded.prompts.raw, partial)
        if facts["task"] == "embedding":
            write_pooling(partial, loaded)
        write_json(partial / "fettle.json", {**facts, "method": "merged"})
    return difference


def write_json(path: Path, value: dict[str, Any] | list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def mismatch(why: str) -> TrainFailure:
    return told_mismatch(f"The saved model does not answer as the trained one did: {why}.")


def told_mismatch(message: str) -> TrainFailure:
    return TrainFailure(
        "artefact_mismatch",
        message,
        "Run it again; if it happens twice, report it with the run's log.",
    )
