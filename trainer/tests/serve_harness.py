"""A model process without the process: request lines in, answer messages out, one step at a time."""

import atexit
import io
import json
import shutil
import tempfile
from argparse import Namespace
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from serve_folders import write_folders

from fettle_trainer.serve import ModelProcess
from fettle_trainer.serve_models import ServedModel, load_model

# One thread: sums must not be split differently from run to run.
torch.set_num_threads(1)

LAST = ("end", "scores", "vectors", "error", "cancelled")


@cache
def root() -> Path:
    folder = tempfile.mkdtemp(prefix="fettle-serve-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def written(name: str) -> Path:
    """The folder of this model, with its adapters beside it; made when first asked for."""
    write_folders(root(), [name])
    return root() / name


@cache
def served(name: str | Path, family: str) -> ServedModel:
    """By its name in serve_folders, or of this folder."""
    folder = name if isinstance(name, Path) else written(name)
    return load_model(  # pyright: ignore[reportArgumentType]
        folder, family, device=torch.device("cpu"), dtype=torch.float32
    )


@dataclass
class Answer:
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(message["text"] for message in self.messages if message["type"] == "delta")

    @property
    def logprobs(self) -> list[dict[str, Any]]:
        return [
            entry for message in self.messages if message["type"] == "delta" for entry in message["logprobs"]
        ]

    @property
    def last(self) -> dict[str, Any]:
        return self.messages[-1]


class Harness:
    def __init__(self, name: str | Path, family: str, **options: int) -> None:
        self._out = io.StringIO()
        chosen = {"max_adapters": 4, "max_rows": 8, "cache_mebibytes": 64, **options}
        self.served = served(name, family)
        self.process = ModelProcess(self.served, self._out, Namespace(**chosen))
        self._read = 0

    def handle(self, request: dict[str, Any]) -> None:
        self.process.handle(json.dumps(request))

    def messages(self) -> list[dict[str, Any]]:
        """What was written since the last call, without the periodic state."""
        written = self._out.getvalue()
        new, self._read = written[self._read :], len(written)
        return [message for message in map(json.loads, new.splitlines()) if message["type"] != "state"]

    def run(self, requests: list[dict[str, Any]]) -> list[Answer]:
        """All at once; answers in the order of the requests."""
        answers = {str(number): Answer() for number in range(len(requests))}
        for number, request in enumerate(requests):
            self.handle({"id": str(number), **request})
        while self.process.busy:
            self.process.step()
        for message in self.messages():
            answers[message["id"]].messages.append(message)
        assert all(answer.last["type"] in LAST for answer in answers.values())
        return list(answers.values())

    def one(self, request: dict[str, Any]) -> Answer:
        return self.run([request])[0]


def greedy(prompt: str, **changes: Any) -> dict[str, Any]:
    return {"op": "generate", "prompt": {"text": prompt}, "temperature": 0.0, "max_tokens": 20, **changes}
