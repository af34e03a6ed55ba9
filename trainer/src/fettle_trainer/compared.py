"""Comparisons that need not be made again: runs of one base compare its layers with rewritten ones once.

What a comparison finds follows from the weights, the code of both sides and the processor. Where it found
nothing different, an empty file is left, named after all of these.
"""

import contextlib
import hashlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from .checksums import CODE_SHA256


class Compared:
    """`folder` None: nothing is kept. `weights`: a name of the weights of the base, and of the adapter that a
    run goes on from; asked as late as can be, as checksums take their time."""

    def __init__(self, folder: Path | None, weights: Callable[[], str]) -> None:
        self._folder = folder
        self._weights = weights
        self.was_spared = False

    def ask(self, model: Any, what: str, *, change: Callable[[], object], compare: Callable[[], str]) -> str:
        """What is different after `change` of the model, which is made in any case: as `compare` says, or
        nothing where it said so before. `what`: the change, with all that it depends on beside the model."""
        # A GPU's driver may be another the next time.
        if self._folder is None or model.device.type != "cpu":
            return compare()
        kept = self._folder / f"alike-{self._name(model, what)}"
        if kept.exists():
            try:
                change()
            except Exception as error:
                return told(error)
            self.was_spared = True
            return ""
        unlike = compare()
        if not unlike:
            # Not to have it costs the next run a second.
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                kept.touch()
        return unlike

    def _name(self, model: Any, what: str) -> str:
        import transformers

        parameters = cast("list[tuple[str, nn.Parameter]]", list(model.named_parameters()))
        made_of = [
            [CODE_SHA256, torch.__version__, transformers.__version__],
            [features().decode(), torch.get_num_threads()],
            [what, self._weights(), model.config.to_json_string()],
            [[name, [*one.shape], str(one.dtype), one.requires_grad] for name, one in parameters],
        ]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


ANEW = Compared(None, lambda: "")


def told(error: Exception) -> str:
    """In one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'unknown'}"


def features() -> bytes:
    """Of the processor: what code that was compiled for it, or chosen by it, depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(
        sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))})
    )
