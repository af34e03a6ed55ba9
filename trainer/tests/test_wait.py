"""A trainer that waits for its run gives what one started for it gives, and ends with whoever keeps it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_family
from tiny import chat_rows, make_decoder, make_spec, write_rows
from training import events_of, of_type, train, write_spec

from fettle_trainer import checksums, identity, models, verifier, wait

PACKAGE = str(Path(__file__).parents[1] / "src")
ENVIRONMENT = {**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1"}


AS_DESCRIPTOR_3 = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execv(sys.executable, [sys.executable, "-m", "fettle_trainer", "wait", *sys.argv[2:]])
"""


def waiting(*more: str) -> tuple[subprocess.Popen[bytes], int]:
    """The process and the end of the pipe that its run is written to. `more`: of its command line."""
    asked, gate = os.pipe()
    command = [sys.executable, "-c", AS_DESCRIPTOR_3, str(asked), *more]
    process = subprocess.Popen(command, env=ENVIRONMENT, pass_fds=(asked,))
    os.close(asked)
    return process, gate


def spec_in(folder: Path, output: str) -> dict[str, Any]:
    if not (folder / "model").exists():
        make_decoder(folder / "model")
        write_rows(folder / "rows.jsonl", chat_rows(12))
    (folder / output).mkdir()
    return make_spec(folder / "model", folder / "rows.jsonl", folder / output)


@pytest.mark.parametrize("told", ["model", "a base that is gone"])
def test_a_waiting_trainer_gives_the_bits_of_a_cold_one(tmp_path: Path, told: str) -> None:
    cold, warm = spec_in(tmp_path, "cold"), spec_in(tmp_path, "warm")
    ready, gate = waiting("--base", str(tmp_path / told))
    command = [sys.executable, "-m", "fettle_trainer", "train", str(write_spec(cold))]
    beside = subprocess.Popen(command, env=ENVIRONMENT)
    line = {"spec": str(write_spec(warm)), "log": str(tmp_path / "warm" / "stderr.log")}
    os.write(gate, json.dumps(line).encode() + b"\n")
    os.close(gate)
    assert (beside.wait(240), ready.wait(240)) == (0, 0)
    seen = [
        [(one["step"], one["train_loss"], one["grad_norm"]) for one in of_type(events_of(spec), "step")]
        for spec in (cold, warm)
    ]
    assert seen[0]
    assert seen[0] == seen[1]
    weights = [
        (tmp_path / name / "artefact" / "adapter_model.safetensors").read_bytes() for name in ("cold", "warm")
    ]
    assert weights[0] == weights[1]
    assert of_type(events_of(warm), "verified")
    assert of_type(events_of(warm), "started")[0]["pid"] == ready.pid
    assert (tmp_path / "warm" / "stderr.log").exists()


def test_it_ends_when_its_pipe_ends_without_a_run() -> None:
    process, gate = waiting()
    os.close(gate)
    assert process.wait(120) == 0


MEASURED_BY = """
import os, sys
from fettle_trainer import wait
asked, gate = os.pipe()
os.close(gate)
os.dup2(asked, 3)
known = []
wait.bfloat16_gain, wait.know_gain = lambda: float(os.getpid()), known.append
assert wait.wait_command() == 0
assert known != [os.getpid()], "its first product would settle how many prepared ones it keeps"
assert len(known) == 1
"""


def test_its_own_first_product_is_the_runs() -> None:
    assert subprocess.run([sys.executable, "-c", MEASURED_BY], env=ENVIRONMENT).returncode == 0


def test_the_tokenizer_of_the_base_it_was_told_is_taken_while_its_files_are_the_same(tmp_path: Path) -> None:
    base = make_decoder(tmp_path / "model")
    models.prepare_prompts(base)
    (prepared,) = models._prepared.values()
    assert models.load_prompts(base) is prepared
    assert models.load_prompts(base) is not prepared, "whoever takes it may set it up in its own way"

    models.prepare_prompts(base)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    assert models.load_prompts(base).raw.chat_template == "{{ messages }}"
    assert not models._prepared, "a run of another base would keep it for nothing"


def test_what_is_prepared_for_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_family(tmp_path / "model", "xlm-roberta")
    monkeypatch.setattr(wait, "_check_not_asked", lambda: None)
    monkeypatch.setattr(checksums, "_SETTLED_SECONDS", -1)
    wait._warm_up_for(base)
    assert "transformers.models.xlm_roberta.modeling_xlm_roberta" in sys.modules
    (prepared,) = models._prepared.values()
    assert models.load_prompts(base) is prepared
    read: list[int] = []
    identity.base_checksum(base, lambda: read.append(1))
    assert not read


def test_a_run_that_is_there_does_not_wait_for_a_checksum(tmp_path: Path) -> None:
    """Of gigabytes, perhaps of a base that is not the run's."""
    make_decoder(tmp_path / "model")
    script = """
import os, sys
from pathlib import Path
from fettle_trainer import checksums, wait
checksums._SETTLED_SECONDS = -1
asked, gate = os.pipe()
os.dup2(asked, 3)
os.write(gate, b"{}")
try:
    wait._warm_up_for(Path(sys.argv[1]))
except wait._AskedError:
    print(len(checksums._crcs))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    said = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "0"


@pytest.fixture
def one_thread() -> Any:
    """Threads of this process do not survive a fork; the verifier is then told to use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_verifier_tells_a_damaged_artefact(tmp_path: Path) -> None:
    ask = verifier.start_verifier()

    def damage_and_ask(artefact: Path, base: Path, probe: Path) -> float:
        (artefact / "adapter_model.safetensors").write_bytes(b"broken")
        return ask(artefact, base, probe)

    code, events = train(spec_in(tmp_path, "out"), verify=damage_and_ask)
    assert code == 1
    assert events[-1]["code"] == "artefact_mismatch"
    assert "it could not be loaded" in events[-1]["message"]


def never(*_: Path) -> float:
    raise AssertionError("the forked verifier was to answer")


def elsewhere(*_: Path) -> float:
    return 0.125


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("killed", "instead"), [(False, never), (True, elsewhere)])
def test_a_verifier_that_was_killed_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool, instead: Callable[..., float]
) -> None:
    monkeypatch.setattr(verifier, "verify_in_fresh_process", instead)
    forked = verifier.fork()
    if killed:
        os.kill(forked.pid, signal.SIGKILL)
    code, events = train(spec_in(tmp_path, "out"), verify=forked.ask)
    assert code == 0
    difference = of_type(events, "verified")[0]["max_abs_diff"]
    assert difference == 0.125 if killed else difference < 0.01


def test_a_verifier_ends_with_its_trainer() -> None:
    forked = verifier.fork()
    os.close(forked.request)
    os.close(forked.answer)
    assert os.waitpid(forked.pid, 0)[1] == 0
