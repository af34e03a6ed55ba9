"""Talks to a serve process over its pipes, as the server does."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"
# Longer than any tiny model takes on a busy machine; reached only when the process hangs.
DEADLINE_SECONDS = 60.0

GREEDY: dict[str, Any] = {"op": "generate", "adapter": None, "temperature": 0.0, "max_tokens": 24}


class ServeClient:
    def __init__(self, base: Path, family: str, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "fettle_trainer",
            "serve",
            "--base",
            str(base),
            "--family",
            family,
            *options,
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        )
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What comes, without the periodic state; ends when the process does."""
        while (message := self._lines.get(timeout=DEADLINE_SECONDS)) is not None:
            if message["type"] != "state":
                yield message

    def ready(self) -> dict[str, Any]:
        return next(self.messages())

    def answers(self, requests: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Sends all at once; all messages of each id, up to its last."""
        for request in requests:
            self.send(request)
        open_ids = {request["id"] for request in requests}
        found: dict[str, list[dict[str, Any]]] = {request_id: [] for request_id in open_ids}
        for message in self.messages():
            found[message["id"]].append(message)
            if message["type"] in ("end", "scores", "vectors", "error", "cancelled"):
                open_ids.discard(message["id"])
                if not open_ids:
                    return found
        raise AssertionError(f"the process ended with {self.process.wait()} before answering {open_ids}")

    def answer(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        return self.answers([{"id": "one", **request}])["one"]

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=DEADLINE_SECONDS)


def text_of(messages: list[dict[str, Any]]) -> str:
    return "".join(message["text"] for message in messages if message["type"] == "delta")


def last(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return messages[-1]
