"""`wait`: a trainer that has loaded all it can and waits for its run. It may be told which base the run is
likely to begin from; a run of another base loads what it needs.

One line on descriptor 3 gives the run: {"spec": PATH, "log": PATH}. The pipe's end without a line means that
the server is gone or wants it no more. From the line on it is the run's trainer, as if started for it.
"""

import contextlib
import json
import os
import select
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from .device import bfloat16_gain, know_gain
from .light_start import collect_from_here
from .run import train_command
from .verifier import apart, start_verifier

_GATE = 3
# Of the bundled models and their nearest kin; others are loaded when their run comes.
_KINDS = ("bert", "llama", "qwen2", "roberta", "t5")


def wait_command(base: Path | None = None) -> int:
    """`base`: folder of the likely base model."""
    verify = start_verifier()
    know_gain(apart(bfloat16_gain))
    _warm_up()
    collect_from_here()
    if base is not None:
        # It may be gone, or broken: whoever trains it will be told.
        with contextlib.suppress(Exception):
            _warm_up_for(base)
    with os.fdopen(_GATE, encoding="utf-8") as gate:
        line = gate.readline()
    if not line.endswith("\n"):
        return 0
    run: dict[str, str] = json.loads(line)
    spec = Path(run["spec"])
    os.chdir(spec.parent)
    log = os.open(run["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    return train_command(spec, verify)


def _warm_up() -> None:
    """Loads and starts what the first step would, with numbers that nobody reads."""
    import torch

    from . import train  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from .kernels import passes

    for kind in _KINDS:
        _load_code(kind)
    passes.library()
    # Patterns for the names of every architecture's weights: 0.2 s, whichever is loaded first.
    cast("Any", import_module("transformers.conversion_mapping")).get_checkpoint_conversion_mapping("")
    with torch.device("meta"):
        torch.arange(2)
    layer = torch.nn.Linear(8, 8)
    optimiser = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.ones(2, 8)).sum().backward()
    torch.nn.utils.clip_grad_norm_(list(layer.parameters()), 1.0)
    cast("Any", optimiser).step()


def _warm_up_for(base: Path) -> None:
    from .identity import base_checksum
    from .models import prepare_prompts

    prepare_prompts(base)
    _load_code(json.loads((base / "config.json").read_bytes())["model_type"])
    base_checksum(base, _check_not_asked)


def _check_not_asked() -> None:
    """A run that is there already does not wait for gigabytes to be read."""
    if select.select([_GATE], [], [], 0)[0]:
        raise _AskedError


class _AskedError(Exception):
    pass


def _load_code(kind: str) -> None:
    configurations = cast("Any", import_module("transformers.models.auto.configuration_auto"))
    name = configurations.model_type_to_module_name(kind)
    import_module(f"transformers.models.{name}.modeling_{name}")
