"""Who proves the artefact: a process forked before this one has seen a weight, ready when it is asked.

trainer ── fork ──► verifier: libraries loaded, nothing else; reads one request from its pipe, or its end
   │ trains                 ▲
   └── {artefact, base, probe} ── loads them anew, answers {max_abs_diff} or {failed}
"""

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .artefact import VERIFY_SECONDS, mismatch, told_mismatch, verify, verify_in_fresh_process
from .failure import TrainFailure
from .light_start import collect_from_here, load_libraries

# Artefact, base model, probe file -> largest difference.
Verifier = Callable[[Path, Path, Path], float]


def start_verifier() -> Verifier:
    """To be called before any product is computed."""
    load_libraries()
    return fork().ask if _forks() else verify_in_fresh_process


def apart(measure: Callable[[], float]) -> float:
    """What it returns in a process forked off, where one can be: this one has computed nothing yet, and how
    many prepared products it will keep is asked with the first."""
    if not _forks():
        return measure()
    answer, answered = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(answered, repr(measure()).encode())
        finally:
            os._exit(0)
    os.close(answered)
    with os.fdopen(answer, encoding="utf-8") as answers:
        text = answers.read()
    os.waitpid(pid, 0)
    return float(text) if text else measure()


def _forks() -> bool:
    """Threads do not survive a fork, nor does a GPU's driver: both begin with the first product."""
    return sys.platform == "linux" and torch.version.cuda is None


@dataclass(frozen=True, slots=True)
class Forked:
    pid: int
    request: int
    answer: int

    def ask(self, artefact: Path, base: Path, probe: Path) -> float:
        """Raises TrainFailure (`artefact_mismatch`)."""
        paths = [str(path.resolve()) for path in (artefact, base, probe)]
        answer = self._exchange({"paths": paths, "num_threads": torch.get_num_threads()})
        if answer is None:  # it was killed: that says nothing of the artefact
            return verify_in_fresh_process(artefact, base, probe)
        if "failed" in answer:
            raise told_mismatch(str(answer["failed"]))
        return float(str(answer["max_abs_diff"]))

    def _exchange(self, request: dict[str, object]) -> dict[str, object] | None:
        """None when it ended, or took too long, without an answer."""
        try:
            with os.fdopen(self.request, "w", encoding="utf-8") as out:
                out.write(json.dumps(request) + "\n")
            with os.fdopen(self.answer, "rb") as answers:
                ready, _, _ = select.select([answers], [], [], VERIFY_SECONDS)
                text = answers.readline() if ready else b""
        except BrokenPipeError:
            text = b""
        if not text.endswith(b"\n"):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return json.loads(text) if text.endswith(b"\n") else None


def fork() -> Forked:
    asked, request = os.pipe()
    answer, answered = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(request)
            os.close(answer)
            _serve(asked, answered)
        finally:
            # Nothing of the trainer's own end (buffers, threads) is this process's to do.
            os._exit(0)
    os.close(asked)
    os.close(answered)
    return Forked(pid, request, answer)


def _serve(asked: int, answered: int) -> None:
    collect_from_here()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with os.fdopen(asked, encoding="utf-8") as requests:
        line = requests.readline()
    if not line:  # the trainer is gone
        return
    request = json.loads(line)
    torch.set_num_threads(int(request["num_threads"]))
    artefact, base, probe = (Path(path) for path in request["paths"])
    answer: dict[str, object]
    try:
        answer = {"max_abs_diff": verify(artefact, base, probe)}
    except Exception as error:
        known = isinstance(error, TrainFailure) and error.code == "artefact_mismatch"
        failure = error if known else mismatch(f"it could not be loaded: {type(error).__name__}: {error}")
        answer = {"failed": str(failure)}
    with os.fdopen(answered, "w", encoding="utf-8") as out:
        out.write(json.dumps(answer) + "\n")
