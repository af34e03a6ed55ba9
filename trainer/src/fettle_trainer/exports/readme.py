"""What stands beside an exported model: how it is used, and how it was compared."""

import re
from pathlib import Path
from typing import Any

from .compare import GGUF_FILE

REPORT_FILE = "export.json"
README_FILE = "README.md"
MODELFILE = "Modelfile"
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def vllm_command(*, name: str, base_name: str, rank: int | None) -> str:
    """One line for a shell, to be run in the exported folder. `rank` None: a whole model."""
    served = _NO_NAME.sub("-", name).strip("-")
    if rank is None:
        return f"vllm serve . --served-model-name {served}"
    ranks = "" if rank <= 16 else f" --max-lora-rank {_vllm_rank(rank)}"
    return f"vllm serve {base_name} --enable-lora{ranks} --lora-modules {served}=."


def _vllm_rank(rank: int) -> int:
    """vLLM takes these alone."""
    return next((one for one in (8, 16, 32, 64, 128, 256, 320, 512) if one >= rank), rank)


def write_readme(folder: Path, report: dict[str, Any]) -> None:
    graphs = sorted(path.name for path in folder.glob("*.onnx"))
    lines = [f"# {report['model']}", "", f"Exported by Fettle as {_words(report)}.", ""]
    lines += ["## Use", "", *_use(report, graphs), ""]
    lines += ["## Compared", "", *comparison(report), "", f"All of it: `{REPORT_FILE}`."]
    (folder / README_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _words(report: dict[str, Any]) -> str:
    words = str(report["format"])
    if report["quantize"]:
        words += f", {report['quantize']}"
    if report["prune"]:
        words += f", {report['prune']:.0%} of its weights pruned"
    return words


def _use(report: dict[str, Any], files: list[str]) -> list[str]:
    lines: list[str] = []
    match report["format"]:
        case "gguf":
            lines += [
                f"llama.cpp: `llama-cli -m {GGUF_FILE}`",
                f"Ollama: `ollama create NAME -f {MODELFILE}`",
            ]
        case "onnx":
            for name in files:
                lines.append(f"onnxruntime: `onnxruntime.InferenceSession('{name}')`")
            lines.append("in a browser: onnxruntime-web, `ort.InferenceSession.create(URL of the file)`")
        case _:
            lines.append("transformers: load this folder; an adapter with PEFT, over its base.")
    if report["vllm"]:
        lines.append(f"vLLM: `{report['vllm']}`")
    return [f"- {line}" for line in lines] + [f"- {note}" for note in report["notes"]]


def comparison(report: dict[str, Any]) -> list[str]:
    """Lines for people."""
    before, after = report["before"], report["after"]
    rows = "rows the run held out" if report["sample"] == "held_out" else "texts that come with Fettle"
    lines = [
        f"- loaded in a fresh process and asked {report['positions']} positions of {report['rows']} {rows}"
    ]
    if after["max_abs_diff"] is not None:
        lines.append(
            f"- largest difference of a logit to what was to be written: {after['max_abs_diff']:.2g}"
        )
    lines.append(f"- largest difference of a logit to the tuned model: {after['max_abs_change']:.2g}")
    lines.append(f"- same answer as the tuned model at {after['agreement']:.1%} of the positions")
    if report["sample"] == "held_out":
        lines.append(f"- loss {before['loss']:.4f} before, {after['loss']:.4f} after")
        lines.append(f"- accuracy {before['accuracy']:.1%} before, {after['accuracy']:.1%} after")
        for name, value in before["metrics"].items():
            if name != "accuracy":
                lines.append(f"- {name} {value:.4g} before, {after['metrics'][name]:.4g} after")
    if report["speed"] is not None:
        speed = report["speed"]
        lines.append(
            f"- speed: {speed['before_ms']:.1f} ms before, {speed['after_ms']:.1f} ms after, "
            f"{speed['gain']:.2f} times as fast (median of {speed['runs']}, taking turns)"
        )
    return lines
