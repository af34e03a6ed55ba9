"""One export: what is asked, the files, the comparison, the report.

tuned model ── merge ── prune ── as it will be stored ── files ── fresh process ── report
     └── before             └── expected                              └── after
"""

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from .. import adapter_kinds
from ..adapters import LoraSettings
from ..artefact import load_artefact, save_model, write_json, write_pooling, written_whole
from ..failure import TrainFailure
from ..models import Loaded
from ..spec import Task
from ..tasks import objective_of
from .compare import GGUF_FILE, Form, Measured, measured_in_fresh_process, mismatch, write_probe
from .gguf_model import GgufType, as_stored, check_gguf, write_gguf
from .modelfile import modelfile
from .onnx_model import OnnxModel, arrays_of, quantize_int8, require_onnx, write_onnx
from .prune import prune
from .readme import MODELFILE, REPORT_FILE, vllm_command, write_readme
from .refusal import not_possible
from .sample import Asking, Score, sample_of, score
from .speed import Speed, compared

QUANTIZATIONS: dict[Form, tuple[str, ...]] = {
    "safetensors": (),
    "merged": (),
    "gguf": ("f16", "q8_0", "q4_0"),
    "onnx": ("int8",),
}


@dataclass(frozen=True, slots=True)
class Request:
    """`source`: the tuned model's folder, an adapter or a whole model; `base`: the adapter's, or `source`.
    `run`: its run's folder, for the rows that were held out. `prune`: share of the weights, below 1."""

    source: Path
    base: Path
    run: Path | None
    name: str
    form: Form
    quantize: str | None
    prune: float
    out: Path


Tell = Callable[[str], None]


class Compare(Protocol):
    """Loads what was written and asks it."""

    def __call__(self, form: Form, folder: Path, *, base: Path, probe: Path) -> Measured: ...


def export_model(
    request: Request, tell: Tell, *, compare: Compare = measured_in_fresh_process
) -> dict[str, Any]:
    """Writes the folder `out` whole or not at all; the report. `tell` hears what is being done.
    Raises TrainFailure, OSError, TensorFileError (disk full)."""
    if request.out.exists() and any(request.out.iterdir()):
        raise TrainFailure("conflict", f"{request.out} exists and is not empty.", "Give a new folder.")
    request.out.parent.mkdir(parents=True, exist_ok=True)
    return _Export(request, tell, compare).report()


class _Export:
    def __init__(self, request: Request, tell: Tell, compare: Compare) -> None:
        self._request, self._tell, self._measure = request, tell, compare
        self._facts = cast(
            "dict[str, Any]", json.loads((request.source / "fettle.json").read_text(encoding="utf-8"))
        )
        self._task: Task = cast("Task", self._facts["task"])
        self._notes: list[str] = []
        self._speed: Speed | None = None
        self._check()
        tell("loading the model")
        self._loaded = load_artefact(request.source, request.base, torch.float32)
        labels = self._facts["labels"]
        self._asking = Asking.of(self._loaded, self._facts)
        # What is written for a while lies beside the export: who kills us takes that folder away.
        self._scratch = request.out.parent
        self._sample = sample_of(
            self._loaded,
            self._task,
            None if labels is None else tuple(labels),
            run=request.run,
            scratch=self._scratch,
        )

    def _check(self) -> None:
        form, quantize, share = self._request.form, self._request.quantize, self._request.prune
        if quantize is not None and quantize not in QUANTIZATIONS[form]:
            known = ", ".join(QUANTIZATIONS[form]) or "none"
            raise not_possible(form, f"it has no {quantize}", f"Its quantisations: {known}.")
        if share and form == "safetensors":
            raise not_possible(
                form, "an adapter cannot be pruned apart from its base", "Use --format merged."
            )
        if not 0 <= share < 1:
            raise TrainFailure("value_out_of_range", f"prune is {share}.", "Give a share from 0 to below 1.")
        if form == "onnx":
            require_onnx()
        if form == "gguf" and objective_of(self._task).auto_class != "AutoModelForCausalLM":
            raise not_possible(form, f"llama.cpp writes text, and this model's task is {self._task}")

    def report(self) -> dict[str, Any]:
        request = self._request
        self._tell("asking the tuned model")
        before = self._score(self._loaded)
        if self._loaded.adapter is not None and request.form != "safetensors":
            adapter_kinds.merge(self._loaded.model, self._loaded.adapter)
        if request.prune:
            self._prune()
        with written_whole(request.out) as partial:
            self._tell(f"writing {request.form}")
            expected = self._write(partial)
            self._tell("comparing in a fresh process")
            report = self._compare(partial, before, expected)
            write_readme(partial, report)
            write_json(partial / REPORT_FILE, report)
        return report

    def _score(self, loaded: Loaded) -> Score:
        return score(loaded, self._asking, self._sample.rows)

    def _prune(self) -> None:
        self._tell("pruning")
        whole = copy.deepcopy(self._loaded.model)
        zero = prune(self._loaded.model, self._request.prune)
        self._notes.append(f"{zero:.1%} of the weights of its inner linear layers are zero.")
        if self._request.form == "merged":
            ids = torch.zeros((1, 64), dtype=torch.long)
            inputs = {"input_ids": ids}
            if whole.config.is_encoder_decoder:
                inputs["decoder_input_ids"] = ids[:, :16]
            with torch.no_grad():
                self._speed = compared(lambda: whole(**inputs), lambda: self._loaded.model(**inputs))

    def _write(self, folder: Path) -> Score | None:
        """The files; what a reader of them must answer, where that is exact."""
        request, loaded = self._request, self._loaded
        match request.form:
            case "safetensors":
                shutil.copytree(request.source, folder, dirs_exist_ok=True)
            case "merged":
                save_model(loaded.model, loaded.prompts.raw, folder)
                if self._asking.objective.reads == "vectors":
                    write_pooling(folder, loaded)
                method = "merged" if loaded.adapter is not None else self._facts["method"]
                write_json(folder / "fettle.json", {**self._facts, "method": method})
            case "gguf":
                self._write_gguf(folder)
            case "onnx":
                return self._write_onnx(folder)
        return self._score(loaded)

    def _write_onnx(self, folder: Path) -> Score | None:
        """int8: no exact answer is known, its loss of quality is what is told."""
        loaded, reads = self._loaded, self._asking.objective.reads
        loaded.prompts.raw.save_pretrained(str(folder))
        loaded.model.config.save_pretrained(folder)
        if reads == "vectors":
            write_pooling(folder, loaded)
        write_json(folder / "fettle.json", self._facts)
        if reads == "vocabulary":
            self._notes.append("No keys and values are kept: each call reads all that is written so far.")
        if self._request.quantize is None:
            write_onnx(loaded, folder, reads)
            return self._score(loaded)
        with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            write_onnx(loaded, Path(scratch), reads)
            quantize_int8(Path(scratch), folder)
            whole, small = OnnxModel(Path(scratch)), OnnxModel(folder)
        self._notes.append(f"Its graphs take {small.bytes / whole.bytes:.0%} of their bytes in fp32.")
        inputs = arrays_of(self._asking.collate(self._sample.rows, [0]))
        self._speed = compared(lambda: whole.run(inputs), lambda: small.run(inputs))
        return None

    def _write_gguf(self, folder: Path) -> None:
        quantize = cast("GgufType", self._request.quantize or "f16")
        path, stops = folder / GGUF_FILE, [int(one) for one in self._facts["stop_token_ids"]]
        whole = write_gguf(self._loaded, path, name=self._request.name, quantize=quantize, stop_ids=stops)
        if whole:
            self._notes.append(f"{whole} tensors stay f16: their rows do not fill blocks of 32.")
        try:
            check_gguf(self._loaded, path)
        except ValueError as error:
            raise mismatch(f"read back, {error}") from error
        as_stored(self._loaded, quantize)
        text, has_template = modelfile(self._loaded.prompts, gguf=GGUF_FILE, stop_ids=stops)
        (folder / MODELFILE).write_text(text, encoding="utf-8")
        if not has_template:
            self._notes.append(
                "The Modelfile has no TEMPLATE: Ollama's turns cannot write what the chat template does. "
                "Ollama takes the one in the GGUF where it knows it."
            )

    def _compare(self, folder: Path, before: Score, expected: Score | None) -> dict[str, Any]:
        request, loaded = self._request, self._loaded
        with tempfile.TemporaryDirectory(dir=self._scratch) as temporary:
            probe = Path(temporary) / "probe.safetensors"
            write_probe(probe, self._sample, self._asking, before=before, expected=expected)
            after = self._measure(request.form, folder, base=request.base, probe=probe)
        adapter = loaded.adapter if request.form == "safetensors" else None
        lora = adapter if isinstance(adapter, LoraSettings) and not adapter.dora else None
        # vLLM takes no other adapters than those; merged, they are models like any other.
        is_known = adapter is None or lora is not None
        writes = objective_of(self._task).auto_class == "AutoModelForCausalLM"
        is_served = writes and request.form in ("safetensors", "merged") and is_known
        vllm = vllm_command(
            name=request.name,
            base_name=str(self._facts["base_model"]),
            rank=None if lora is None else lora.r,
        )
        return {
            "version": 1,
            "model": request.name,
            "format": request.form,
            "quantize": request.quantize or ("f16" if request.form == "gguf" else None),
            "prune": request.prune,
            "sample": self._sample.source,
            "rows": len(self._sample.rows),
            "positions": before.logits_NV.shape[0],
            "before": {"loss": before.loss, "accuracy": before.accuracy, "metrics": before.metrics},
            "after": {
                "max_abs_diff": after.difference,
                "max_abs_change": after.change,
                "agreement": after.agreement,
                "loss": after.loss,
                "accuracy": after.accuracy,
                "metrics": after.metrics,
            },
            "speed": None if self._speed is None else asdict(self._speed),
            "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            "vllm": vllm if is_served else None,
            "notes": self._notes,
        }
