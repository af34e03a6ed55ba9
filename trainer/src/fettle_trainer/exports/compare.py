"""An export, loaded in a fresh process and asked what the model in memory was asked."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import gguf
import torch
import transformers
from transformers import modeling_gguf_pytorch_utils

from ..artefact import load_artefact
from ..data import TokenRows
from ..failure import TrainFailure
from ..models import Loaded, load_prompts
from ..tensor_files import read_metadata, read_tensors, write_tensors
from .onnx_model import OnnxModel
from .sample import Asking, Sample, Score, agreement, score, score_of

Form = Literal["safetensors", "merged", "gguf", "onnx"]

GGUF_FILE = "model.gguf"
_SECONDS = 3600
# Largest difference of a logit, as a share of the largest logit.
_TOLERANCE: dict[Form, float] = {"safetensors": 1e-3, "merged": 1e-3, "gguf": 1e-3, "onnx": 1e-4}
# What a GGUF does not say and llama.cpp takes for granted; `gguf_model` refuses other models.
_UNTOLD = (
    "rope_parameters",
    "query_pre_attn_scalar",
    "layer_types",
    "sliding_window",
    "n_positions",
    "n_inner",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """`difference`: largest one of a logit to what was to be written; None where only the quality is asked.
    `change` and `agreement`: to the model before anything was taken from it."""

    difference: float | None
    change: float
    agreement: float
    loss: float
    accuracy: float
    metrics: dict[str, float]


def write_probe(path: Path, sample: Sample, asking: Asking, *, before: Score, expected: Score | None) -> None:
    tensors = {**sample.rows.tensors(), "before": before.logits_NV}
    if expected is not None:
        tensors["expected"] = expected.logits_NV
    write_tensors(path, tensors, {"asking": json.dumps(asdict(asking))})


def measured_in_fresh_process(form: Form, folder: Path, *, base: Path, probe: Path) -> Measured:
    """Raises TrainFailure (`artefact_mismatch`) when it cannot be loaded, or answers as another model."""
    command = [sys.executable, "-m", "fettle_trainer", "verify-export", "--json", "--format", form]
    command += ["--folder", str(folder), "--base", str(base), "--probe", str(probe), "--end-with-stdin"]
    package = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    # Its end of this pipe closes when we die, however: nobody waits for the comparison then.
    stdin, ours = os.pipe()
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    finally:
        os.close(stdin)
        os.close(ours)
    if done.returncode != 0:
        raise mismatch(f"it could not be loaded: {done.stderr.strip()[-800:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure(form: Form, folder: Path, *, base: Path, probe: Path) -> Measured:
    """In this process. Raises TrainFailure (`artefact_mismatch`)."""
    asking = Asking(**json.loads(read_metadata(probe)["asking"]))
    stored = read_tensors(probe)
    rows, before = TokenRows.of(stored), stored["before"]
    if form == "onnx":
        graph = OnnxModel(folder)
        found = score_of(rows, asking, lambda _, batch: graph.answers(batch, asking))
    else:
        found = score(_loaded(form, folder, base), asking, rows)
    if not bool(torch.isfinite(found.logits_NV).all()):
        raise mismatch("some of its answers are no numbers")
    difference = None
    if "expected" in stored:
        expected = stored["expected"]
        difference = float((found.logits_NV - expected).abs().max())
        allowed = _TOLERANCE[form] * max(1.0, float(expected.abs().max()))
        if difference > allowed:
            raise mismatch(f"its answers differ by {difference:.3g}, more than {allowed:.3g}")
    change = float((found.logits_NV - before).abs().max())
    same = agreement(asking, found.logits_NV, before)
    return Measured(difference, change, same, found.loss, found.accuracy, found.metrics)


def mismatch(why: str) -> TrainFailure:
    return TrainFailure(
        "artefact_mismatch",
        f"The exported model does not answer as the tuned one does: {why}.",
        "Nothing of it was kept. Export it in another format, and report this with the server's log.",
    )


def _loaded(form: Form, folder: Path, base: Path) -> Loaded:
    return _read_gguf(folder, base) if form == "gguf" else load_artefact(folder, base, torch.float32)


def _read_gguf(folder: Path, base: Path) -> Loaded:
    """By transformers' reader, which shares nothing with our writer. The base says how rows are padded."""
    library = cast("Any", transformers)
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    source = library.AutoConfig.from_pretrained(base, local_files_only=True)
    config = library.AutoConfig.from_pretrained(folder, gguf_file=GGUF_FILE)
    for name in _UNTOLD:
        if getattr(source, name, None) is not None and hasattr(config, name):
            setattr(config, name, getattr(source, name))
    file = gguf.GGUFReader(folder / GGUF_FILE)
    arch = cast("Any", file.get_field(gguf.Keys.General.ARCHITECTURE)).contents()
    width = file.get_field(gguf.Keys.Attention.KEY_LENGTH.format(arch=arch))
    if width is not None:  # transformers does not look for it in every architecture
        config.head_dim = int(width.contents())
    model = library.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    # What `from_pretrained` does with a GGUF, which would ask for a package that is used for nothing here.
    reader = cast("Any", modeling_gguf_pytorch_utils)
    told = reader.load_gguf_checkpoint(str(folder / GGUF_FILE), return_tensors=True, model_to_load=model)
    lacking = model.load_state_dict(told["tensors"], strict=False)
    model.tie_weights()
    if lacking.unexpected_keys or set(lacking.missing_keys) - set(_tied(model)):
        raise mismatch(f"its file lacks {[*lacking.missing_keys, *lacking.unexpected_keys][:3]}")
    model.eval()
    return Loaded(
        model=model,
        prompts=load_prompts(base),
        family="decoder",
        head_modules=(),
        packed=False,
        adapter=None,
        max_length=0,
        pad_id=0,
        start_id=0,
    )


def _tied(model: Any) -> list[str]:
    """Names of weights that another name holds too."""
    if not model.config.tie_word_embeddings:
        return []
    return [name for name in model.state_dict() if name == "lm_head.weight"]
