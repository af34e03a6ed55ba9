"""A start loads what it needs and no more; what was left out comes when it is asked for."""

import json
import subprocess
import sys
from pathlib import Path

from tiny import make_decoder

PACKAGE = str(Path(__file__).parents[1] / "src")


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
