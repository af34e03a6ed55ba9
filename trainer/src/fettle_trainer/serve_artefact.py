"""What a folder says about itself: fettle.json of an artefact, and what other tools leave beside a model."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .serve_refusal import ServeRefusal


@dataclass(frozen=True, slots=True)
class Artefact:
    """`stop_ids` None: the folder does not say. `max_length`: tokens a row was cut to in training. `target`:
    mean and standard deviation of the numbers that were learnt."""

    labels: tuple[str, ...] | None = None
    stop_ids: frozenset[int] | None = None
    chat_template_sha256: str | None = None
    max_length: int | None = None
    task: str | None = None
    target: tuple[float, float] | None = None


def read_artefact(folder: Path) -> Artefact:
    """fettle.json of a tuned model or adapter; an empty record for a folder that has none."""
    entries = read_json(folder / "fettle.json")
    if entries is None:
        return Artefact()
    labels, stop_ids = entries.get("labels"), entries.get("stop_token_ids")
    target = entries.get("target")
    return Artefact(
        labels=tuple(str(label) for label in labels) if labels else None,
        stop_ids=frozenset(int(token_id) for token_id in stop_ids) if stop_ids else None,
        chat_template_sha256=entries.get("chat_template_sha256"),
        max_length=entries.get("max_length"),
        task=entries.get("task"),
        target=(float(target["mean"]), float(target["std"])) if target else None,
    )


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a sentence encoder makes one vector of a text. `max_length` None: as long as the model takes."""

    mode: str = "mean"
    max_length: int | None = None


def read_pooling(folder: Path) -> Pooling:
    """From sentence-transformers' files; mean pooling when there are none."""
    path = folder / "1_Pooling" / "config.json"
    modes = _pooling_modes(read_json(path) or {})
    if modes not in (["mean"], ["cls"]):
        raise ServeRefusal(
            "inference_failed",
            f"{path} asks for a pooling that is not served, {' and '.join(modes)}: "
            "expected mean or cls alone.",
        )
    return Pooling(modes[0], _most_tokens(folder))


def _most_tokens(folder: Path) -> int | None:
    """Of a text, as sentence-transformers cuts it: its folders of version 6 have it of the tokenizer."""
    length = (read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    if not length and (folder / "modules.json").is_file():
        length = (read_json(folder / "tokenizer_config.json") or {}).get("model_max_length")
    return int(length) if length else None


def _pooling_modes(settings: dict[str, Any]) -> list[str]:
    """Newer versions of sentence-transformers name them, older ones have a flag for each; the mean where
    nothing is said."""
    named = settings.get("pooling_mode")
    if named is None:
        flags = [flag for flag in settings if flag.startswith("pooling_mode_") and settings[flag]]
        named = [re.sub("^pooling_mode_|_tokens?$", "", flag) for flag in flags] or "mean"
    return [str(mode) for mode in (cast("list[Any]", named) if isinstance(named, list) else [named])]


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in this file, or None when there is no such file."""
    if not path.is_file():
        return None
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ServeRefusal(
            "inference_failed", f"{path} is not JSON: {error}. Put the original file back."
        ) from error
