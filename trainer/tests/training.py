"""Running a training in a test: in this process, or in a forked one that can be killed."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from fettle_trainer import artefact
from fettle_trainer.run import train_command


def train(spec: dict[str, Any], **kinds: Any) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and events. The artefact is proved here, not in a process of its own, to save its start."""
    path = write_spec(spec)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        code = train_command(path, kinds.get("verify", artefact.verify))
    finally:
        signal.signal(signal.SIGTERM, handlers[0])
        signal.signal(signal.SIGINT, handlers[1])
    return code, events_of(spec)


def write_spec(spec: dict[str, Any]) -> Path:
    path = Path(spec["output_dir"]).with_suffix(".spec.json")
    # As a whole: another rank may be reading it.
    whole = path.with_suffix(".partial")
    whole.write_text(json.dumps(spec))
    whole.replace(path)
    return path


def events_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(spec["output_dir"]) / "events.jsonl"
    if not path.exists():
        return []
    whole = path.read_bytes()
    return [json.loads(line) for line in whole[: whole.rfind(b"\n") + 1].splitlines()]


def of_type(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


class Forked:
    """A real process with PyTorch already loaded: what a test sends it, it gets like any other."""

    def __init__(self, spec: dict[str, Any], before: Callable[[], None] = lambda: None) -> None:
        path = write_spec(spec)
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.dup2(null, 2)
                before()
                code = train_command(path, artefact.verify)
            finally:
                os._exit(code)

    def wait(self, seconds: float = 120.0) -> int:
        """Exit code; minus the signal when one ended it."""
        ended = self.wait_until(lambda: False, seconds)
        assert ended is not None, f"process {self.pid} did not end within {seconds} s"
        return ended

    def wait_until(self, reached: Callable[[], bool], seconds: float = 120.0) -> int | None:
        """None once `reached`; the exit code when the process ends first."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if reached():
                return None
            time.sleep(0.0005)
        return None

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)


class TwoRanks:
    """Forked with the environment and the store that torchrun makes; PyTorch is loaded already. `second`:
    another spec for the second rank. `before` is called in each, with its number."""

    def __init__(
        self,
        spec: dict[str, Any],
        second: dict[str, Any] | None = None,
        before: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

        def rank(number: int) -> Forked:
            known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port), "WORLD_SIZE": "2"}
            known |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
            known |= {"RANK": str(number), "LOCAL_RANK": str(number)}
            own = second if number and second else spec

            def prepare() -> None:
                os.environ.update(known)
                before(number)

            return Forked(own, before=prepare)

        self.ranks = [rank(0), rank(1)]

    def wait(self) -> list[int]:
        """Exit codes. A rank that does not end takes the other with it."""
        try:
            return [rank.wait(60) for rank in self.ranks]
        except AssertionError:
            for rank in self.ranks:
                with contextlib.suppress(ProcessLookupError):
                    rank.kill()
            raise
