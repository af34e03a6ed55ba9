"""Models for readers that are not Python (tests/exports): tiny ones are trained and exported, and what the
trainer's own serving and forward say of them is written down.

    python exported.py OUT      OUT/models.json and the folders it names
"""

import json
import sys
from pathlib import Path
from typing import Any

import tiny
import torch
from serve_client import GREEDY, ServeClient, text_of
from test_checkpoint_model import run_of
from test_export_gguf import decoder
from torch import Tensor
from training import of_type, train

from fettle_trainer.artefact import load_artefact
from fettle_trainer.exports.compare import measured_in_fresh_process
from fettle_trainer.exports.write import Request, export_model
from fettle_trainer.models import Loaded

ROWS = 24
TEXTS = ["login broken again", "the invoice is wrong", "the quick brown fox jumps over the lazy dog", "why?"]


def main(out: Path) -> None:
    torch.set_num_threads(1)
    told = {"text": _text(out / "text"), "classes": _classes(out / "classes"), "pairs": _pairs(out / "pairs")}
    (out / "models.json").write_text(json.dumps(told))


def _text(folder: Path) -> dict[str, Any]:
    """A decoder that knows its rows by heart, so that small errors change no word."""
    base = decoder(folder / "base", "llama")
    rows = tiny.chat_rows(ROWS)
    spec = tiny.make_spec(
        base,
        tiny.write_rows(folder / "rows.jsonl", rows),
        folder / "run",
        method="full",
        hyperparameters__num_train_epochs=30,
    )
    code, events = train(spec)
    assert code == 0, of_type(events, "failed")
    source = folder / "run" / "artefact"
    loaded = load_artefact(source, source, torch.float32)
    prompts = loaded.prompts
    asked = [row["messages"][:2] for row in rows]
    client = ServeClient(source, "decoder")
    client.ready()
    ids = [prompts.generation_prompt(messages) for messages in asked]
    said = client.answers(
        [{"id": f"{n}", **GREEDY, "prompt": {"messages": messages}} for n, messages in enumerate(asked)]
    )
    client.close()
    feeds = [
        {"input_ids": torch.tensor([one]), "attention_mask": torch.ones(1, len(one)).long()}
        for one in ids[:3]
    ]
    return {
        "prompts": [{"ids": one, "text": prompts.raw.decode(one, skip_special_tokens=False)} for one in ids],
        "answers": [text_of(said[f"{n}"]) for n in range(len(asked))],
        "max_tokens": GREEDY["max_tokens"],
        "stop_id": 3,
        "gguf": [_exported(source, folder, "gguf", kind) for kind in ("f16", "q8_0", "q4_0")],
        "onnx": [_exported(source, folder, "onnx", None)],
        "cases": [{"feeds": _plain(feed), "logits": _logits(loaded, feed)} for feed in feeds],
    }


def _classes(folder: Path) -> dict[str, Any]:
    run_of(folder, "classification", "full")
    source = folder / "out" / "artefact"
    loaded = load_artefact(source, source, torch.float32)
    feeds = [_feeds(loaded, text, token_type_ids=True) for text in TEXTS]
    return {
        "onnx": [_exported(source, folder, "onnx", kind) for kind in (None, "int8")],
        "cases": [{"feeds": _plain(feed), "logits": _logits(loaded, feed)} for feed in feeds],
    }


def _pairs(folder: Path) -> dict[str, Any]:
    tiny.make_seq2seq(folder / "model", "t5")
    run_of(folder, "seq2seq", "full")
    source = folder / "out" / "artefact"
    loaded = load_artefact(source, source, torch.float32)
    written = torch.tensor([[0, 5, 6, 7]])
    feeds = [{**_feeds(loaded, text), "decoder_input_ids": written} for text in TEXTS]
    return {
        "onnx": [_exported(source, folder, "onnx", None)],
        "cases": [{"feeds": _plain(feed), "logits": _logits(loaded, feed)} for feed in feeds],
    }


def _exported(source: Path, folder: Path, form: Any, quantize: str | None) -> dict[str, Any]:
    """Compared in a fresh process, as for a user."""
    out = folder / f"{form}-{quantize or 'whole'}"
    request = Request(source, source, None, "ft:tiny", form, quantize, 0.0, out)
    report = export_model(request, lambda _: None, compare=measured_in_fresh_process)
    return {"folder": str(out), "report": report}


def _feeds(loaded: Loaded, text: str, *, token_type_ids: bool = False) -> dict[str, Tensor]:
    ids = torch.tensor([loaded.prompts.classification_text(text, None, loaded.max_length).ids])
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**feeds, "token_type_ids": torch.zeros_like(ids)} if token_type_ids else feeds


def _plain(feeds: dict[str, Tensor]) -> dict[str, list[list[int]]]:
    return {name: value.tolist() for name, value in feeds.items()}


@torch.no_grad()
def _logits(loaded: Loaded, feeds: dict[str, Tensor]) -> list[float]:
    logits: Tensor = loaded.model(**feeds).logits
    return logits.flatten().tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
