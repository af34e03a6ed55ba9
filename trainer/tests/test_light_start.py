"""A start loads what it needs and no more; what was left out comes when it is asked for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import LABELS, make_decoder, make_encoder, make_spec, with_layers, write_rows
from training import write_spec

PACKAGE = str(Path(__file__).parents[1] / "src")
needs_prepared_products = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN prepares no products in bf16 on this processor",
)


def run(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env={"PYTHONPATH": PACKAGE}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


LOADED = """
import json, sys
from pathlib import Path
from fettle_trainer.light_start import hide_unused_packages
hide_unused_packages()
import torch
from fettle_trainer.models import load_model
model, _ = load_model(Path(sys.argv[1]), "chat", labels=None, dtype=torch.float32)
optimiser = torch.optim.AdamW(model.parameters(), fused=True)
model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
optimiser.step()
heavy = ["torch._dynamo.convert_frame", "torch._inductor", "torch.distributed.tensor",
         "torch.distributed.fsdp", "datasets", "pyarrow", "pandas", "sklearn"]
print(json.dumps([name for name in heavy if sys.modules.get(name)]))
"""

COMPILED = """
import json, sys
from fettle_trainer.light_start import hide_unused_packages, prepare_transformers
hide_unused_packages()
prepare_transformers()
import torch
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
stand_in = sys.modules["torch._dynamo"]
answers = [torch.compile(lambda x: x * 2, backend="eager")(torch.ones(2)).tolist()]
with TransformGetItemToIndex():
    answers.append(torch.ones(2)[torch.tensor(1)].tolist())
import torch._dynamo.config
answers += [torch._dynamo is not stand_in, sys.modules["torch._dynamo"] is torch._dynamo,
            torch.distributed.is_available()]
print(json.dumps(answers))
"""


def test_a_model_trains_without_compiler_sharding_or_data_libraries(tmp_path: Path) -> None:
    make_decoder(tmp_path / "model")
    assert run(LOADED, str(tmp_path / "model")) == []


def test_whoever_asks_for_the_compiler_gets_the_real_one() -> None:
    assert run(COMPILED) == [[2.0, 2.0], 1.0, True, True, True]


PREPARED = """
import sys
from fettle_trainer.light_start import bound_product_caches
from fettle_trainer.verifier import apart
import torch

def products():
    for rows in range(64, 64 + 8 * 64, 64):
        torch.mm(torch.ones(rows, 64, dtype=torch.bfloat16), torch.ones(64, 64, dtype=torch.bfloat16))
    return 2.5

if sys.argv[2] == "apart":
    assert apart(products) == 2.5
bound_product_caches(int(sys.argv[1]))
products()
products()
"""


@needs_prepared_products
@pytest.mark.parametrize(("kinds", "before", "prepared"), [(4, "", 16), (32, "", 8), (4, "apart", 8 + 16)])
def test_as_many_prepared_products_are_kept_as_was_said(kinds: int, before: str, prepared: int) -> None:
    """Each loop makes products of eight sizes; what is made apart is of another process."""
    environment = {"PYTHONPATH": PACKAGE, "ONEDNN_VERBOSE": "profile_create", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PREPARED, str(kinds), before]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("create:cache_miss,cpu,matmul") == prepared


TRAINED = """
import json, os, sys
from pathlib import Path
from fettle_trainer.run import train_command
train_command(Path(sys.argv[1]))
print(json.dumps(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]))
"""


def test_a_run_keeps_as_many_as_its_rows_ask_for(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [])
    sizes = {
        "hyperparameters__per_device_train_batch_size": 6,
        "hyperparameters__gradient_accumulation_steps": 1,
    }
    spec = make_spec(make_decoder(tmp_path / "model"), rows, tmp_path / "out", **sizes)
    assert run(TRAINED, str(write_spec(spec))) == str(32 + 4 * 6)


@needs_prepared_products
@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_layers_share_what_is_prepared(tmp_path: Path, family: str) -> None:
    """Rows of 16 lengths in each step: with too few kept, each of 4 layers would prepare its own anew."""
    rows = [{"text": "refund " * (1 + 8 * (row % 16)), "label": LABELS[row % 2]} for row in range(32)]
    if family == "decoder":
        rows = [
            {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": "ok"}]}
            for row in rows
        ]
    make = make_decoder if family == "decoder" else make_encoder
    spec = make_spec(
        with_layers(make(tmp_path / "model"), 4),
        write_rows(tmp_path / "rows.jsonl", rows),
        tmp_path / "out",
        task="chat" if family == "decoder" else "classification",
        base_model__family=family,
        data__labels=None if family == "decoder" else LABELS,
        runtime__dtype="bfloat16",
        hyperparameters__per_device_train_batch_size=16,
        hyperparameters__gradient_accumulation_steps=1,
        hyperparameters__num_train_epochs=1,
        hyperparameters__max_length=512,
    )
    prepared: list[int] = []
    for kinds in ("", "1024"):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        environment = {"PYTHONPATH": PACKAGE, "ONEDNN_VERBOSE": "profile_create"}
        if kinds:
            environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = kinds
        command = [sys.executable, "-m", "fettle_trainer", "train", str(write_spec(spec))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        prepared.append(done.stdout.count("create:cache_miss"))
    assert prepared[0] < 1.3 * prepared[1]


COLLECTED = """
import gc
from fettle_trainer.light_start import collect_from_here, put_off_collection
collect_from_here()
assert gc.isenabled() and gc.get_freeze_count() == 0, "a process of somebody else stays as it is"
put_off_collection()
assert not gc.isenabled()
import json.tool
collect_from_here()
print(int(gc.isenabled() and gc.get_freeze_count() > 1000))
"""


def test_what_is_loaded_is_not_looked_at_by_the_collector_again() -> None:
    assert run(COLLECTED) == 1


AS_A_PROCESS = """
import gc, os, sys
from pathlib import Path
from fettle_trainer.light_start import hide_unused_packages, put_off_collection
hide_unused_packages()
sys.argv = ["fettle_trainer", *sys.argv[1:]]
from fettle_trainer.__main__ import main
"""
SERVING = """
import fettle_trainer.serve
fettle_trainer.serve.main = lambda _: gc.isenabled()
print(int(main()))
"""
TRAINING = """
import fettle_trainer.train
fettle_trainer.train.Training.run = lambda _: print(int(gc.isenabled()))
main()
"""
WAITING = """
asked, gate = os.pipe()
os.close(gate)
os.dup2(asked, 3)
assert main() == 0
print(int(gc.isenabled()))
"""
VERIFYING = """
from fettle_trainer import verifier
put_off_collection()
verifier.verify = lambda *_: float(gc.isenabled())
print(int(verifier.fork().ask(Path("a"), Path("b"), Path("c"))))
"""


@pytest.mark.parametrize(
    ("command", "script"),
    [("serve", SERVING), ("train", TRAINING), ("wait", WAITING), ("verify", VERIFYING)],
)
def test_each_kind_of_process_collects_when_it_begins_its_work(
    tmp_path: Path, command: str, script: str
) -> None:
    given: list[str] = []
    if command == "train":
        make_encoder(tmp_path / "model")
        rows = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": LABELS[0]}] * 4)
        given = [str(write_spec(make_spec(tmp_path / "model", rows, tmp_path / "out")))]
    assert run(AS_A_PROCESS + script, command, *given) == 1
