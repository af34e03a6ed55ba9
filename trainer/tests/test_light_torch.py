"""PyTorch begins without its kernels for shapes: every family loads and trains without, and whoever asks for
them gets them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import KINDS, make_family
from tiny import chat_rows, make_decoder, make_spec, write_rows
from training import write_spec

from fettle_trainer.device import seed_everything
from fettle_trainer.light_torch import import_shapes, import_torch, with_shapes
from fettle_trainer.models import load_model

PACKAGE = str(Path(__file__).parents[1] / "src")
BEGUN = """
import json, sys
from importlib import import_module
from fettle_trainer.light_torch import import_shapes, import_torch, with_shapes
import_torch()
import torch
LEFT_OUT = ["torch._meta_registrations", "torch._decomp", "torch._prims", "torch._refs", "sympy"]
def left_out():
    return [name for name in LEFT_OUT if name not in sys.modules] == LEFT_OUT
assert left_out()
NO_NUMBERS = torch.empty(4, 2, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta")
"""
LOADED = """
import hashlib
from pathlib import Path
from fettle_trainer.device import seed_everything
from fettle_trainer.models import load_model
found = []
for name, task in json.loads(sys.argv[1]).items():
    seed_everything(7)
    model, _ = load_model(Path(name), task, labels=("a", "b") if task == "classification" else None,
                          dtype=torch.float32)
    values = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    ids = torch.tensor([[4, 5, 6]])
    labels = torch.tensor([1]) if task == "classification" else ids
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    found.append([hashlib.sha256(values.numpy().tobytes()).hexdigest(), loss.item()])
print(json.dumps([left_out(), found]))
"""
TASKS = {"decoder": "chat", "encoder": "classification", "seq2seq": "seq2seq"}


def run(script: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:fettle_trainer", "-c", BEGUN + script, *arguments],
        env={"PYTHONPATH": PACKAGE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_family_loads_and_learns_without(tmp_path: Path) -> None:
    """The same weights, new heads among them, and the same loss."""
    tasks = {str(make_family(tmp_path / name, name)): TASKS[kind.family] for name, kind in KINDS.items()}
    expected: list[list[Any]] = []
    for folder, task in tasks.items():
        seed_everything(7)
        labels = ("a", "b") if task == "classification" else None
        model, _ = load_model(Path(folder), task, labels=labels, dtype=torch.float32)  # pyright: ignore[reportArgumentType]
        values = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        ids = torch.tensor([[4, 5, 6]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=torch.tensor([1]) if labels else ids).loss
        expected.append([hashlib.sha256(values.numpy().tobytes()).hexdigest(), pytest.approx(loss.item())])
    assert run(LOADED, json.dumps(tasks)) == [True, expected]


ASKED = {
    "compiler": "torch.compile(lambda x: x * 2, backend='aot_eager')(torch.ones(2)).tolist() == [2, 2]",
    "tables": "import_module('torch._decomp').decomposition_table is torch._decomp.decomposition_table",
    "a part": "import_module('torch._refs.linalg') is torch._refs.linalg",
    "kernels": "import_module('torch._meta_registrations').device_hint is not None",
    "what begins a circle": "import_module('torch.utils._content_store').ContentStoreReader is not None",
    "an attribute": "torch.broadcast_shapes((2, 1), (1, 3)) == (2, 3)",
    "a model without numbers": "with_shapes(lambda: torch.embedding(*NO_NUMBERS)).shape == (3, 2)",
}


@pytest.mark.parametrize("who", ASKED)
def test_whoever_asks_gets_them(who: str) -> None:
    """As many as PyTorch has otherwise, and each module once, as its own."""
    rest = """
import_shapes()
print(json.dumps([asked, len(torch._decomp.decomposition_table), len(torch._decomp.meta_table),
                  [sys.modules[name].__spec__.loader.__class__.__name__ for name in LEFT_OUT[:4]]]))
"""
    whole = [len(torch._decomp.decomposition_table), len(torch._decomp.meta_table)]
    assert run(f"asked = {ASKED[who]}\n{rest}") == [True, *whole, ["SourceFileLoader"] * 4]


def test_generators_draw_the_same() -> None:
    drawn = run(
        "print(json.dumps([left_out(), torch.rand(3, generator=torch.Generator().manual_seed(5)).tolist()]))"
    )
    assert drawn == [True, torch.rand(3, generator=torch.Generator().manual_seed(5)).tolist()]


def test_an_unknown_name_is_unknown() -> None:
    assert run("print(json.dumps([hasattr(torch, 'no_such_name'), left_out()]))") == [False, True]


def test_where_pytorch_is_whole_nothing_happens() -> None:
    import_torch()
    assert not import_shapes()

    def missing() -> None:
        raise NotImplementedError("no such kernel")

    with pytest.raises(NotImplementedError, match="no such kernel"):
        with_shapes(missing)


def test_another_release_begins_whole() -> None:
    """One that gives generators another way, or loads these parts by itself, is left as it is."""
    begun = """
import json, sys
from fettle_trainer import light_torch
light_torch._GENERATORS = "no such name"
light_torch.import_torch()
import torch
print(json.dumps(["torch._refs" in sys.modules, torch.Generator().manual_seed(5).initial_seed()]))
"""
    command = [sys.executable, "-c", begun]
    done = subprocess.run(command, env={"PYTHONPATH": PACKAGE}, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, 5]


STARTED = """
import json, os, sys
if sys.argv[1] == "wait":
    asked, gate = os.pipe()
    os.dup2(asked, 3)
    os.close(gate)
from fettle_trainer.__main__ import main
code = main()
left_out = [name for name in ("torch._meta_registrations", "torch._refs", "sympy") if name not in sys.modules]
print(json.dumps([code, left_out]))
"""


def goes_without(*arguments: str) -> None:
    command = [sys.executable, "-c", STARTED, *arguments]
    done = subprocess.run(command, env={"PYTHONPATH": PACKAGE}, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [
        0,
        ["torch._meta_registrations", "torch._refs", "sympy"],
    ]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_whole_run_goes_without(tmp_path: Path, method: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", chat_rows(12))
    spec = make_spec(make_decoder(tmp_path / "model"), rows, tmp_path / "out", method=method)
    goes_without("train", str(write_spec(spec)))


def test_a_trainer_that_waits_goes_without() -> None:
    goes_without("wait")


def test_a_tensor_that_is_split_is_still_known() -> None:
    asked = """
from fettle_trainer.light_torch import without_sharding
def knows():
    try:
        return import_module("torch.distributed.tensor") is not None
    except ImportError:
        return False
with without_sharding():
    before = knows()
after = knows()
with without_sharding():
    print(json.dumps([before, after, knows()]))
"""
    assert run(asked) == [False, True, True]
