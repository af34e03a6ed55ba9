"""One base model, serving: `python -m fettle_trainer serve --base FOLDER --family decoder|encoder|seq2seq`.

JSON lines: requests on stdin, answers on stdout (nothing else is ever printed there), talk on stderr.
Closing stdin ends the process at once, whatever it was doing: nothing here needs keeping.

Requests. `id` is the caller's, unique among those in flight; `adapter` is a folder in PEFT's format or null.

    {"id", "op": "generate", "adapter", "prompt": {"messages": [], "tools"?: []} | {"text"} | {"tokens": []},
     "max_tokens": n|null, "temperature", "top_p", "stop": [], "seed": n|null, "frequency_penalty",
     "presence_penalty", "logit_bias": {"<token id>": bias}, "logprobs": n|null, "json_mode", "echo"}
    {"id", "op": "classify", "adapter", "inputs": [text | {"text", "second"?}]}
    {"id", "op": "predict", "adapter", "inputs": [{"text", "second"?}]}     two texts: prompt and what was
                                                                    said to it, or question and context
    {"id", "op": "embed", "adapter", "inputs": [text | [token id]]}
    {"id", "op": "cancel"}                        ends a request; unknown or finished ids are ignored

Answers. After "end", "scores", "predictions", "vectors", "error" or "cancelled" nothing more comes for an id.

    {"type": "ready", "pid", "context_length", "rss_bytes"}      once, when the model is loaded
    {"type": "fatal", "code", "message"}                          instead, before exit code 1
    {"type": "start", "id", "prompt_tokens"}
    {"type": "delta", "id", "text", "logprobs": [{"token", "bytes", "logprob": x|null, "top": [{...}]}]}
    {"type": "end", "id", "finish_reason": "stop"|"length", "prompt_tokens", "completion_tokens"}
    {"type": "scores", "id", "scores": [[{"label", "probability"}]], "num_tokens"}     most probable first
    {"type": "predictions", "id", "predictions": [{"score"} | {"entities": [{"start", "end", "label", "text",
     "probability"}]} | {"answer": {"start", "end", "text", "score"} | null}], "num_tokens"}
    {"type": "vectors", "id", "vectors": [base64 of float32, little-endian], "num_tokens"}
    {"type": "error", "id": id|null, "code", "message"}
    {"type": "cancelled", "id"}
    {"type": "state", "rss_bytes", "adapters": [folder]}          when idle, and every few seconds of work
"""

import argparse
import base64
import json
import os
import queue
import resource
import struct
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from transformers.utils import logging as transformers_logging

from .failure import TrainFailure
from .generate_decoder import DecoderEngine
from .generate_job import GenerationJob, Progress
from .generate_seq2seq import Seq2SeqEngine
from .generate_text import Piece, TokenLogprob
from .serve_adapters import AdapterShelf
from .serve_encode import EncodeEngine, EncodeJob
from .serve_intake import Intake
from .serve_models import ServedModel, load_model
from .serve_refusal import ServeRefusal
from .serve_requests import CancelRequest, GenerateRequest, parse_line

STATE_SECONDS = 2.0


class ModelProcess:
    """Takes request lines, runs steps, writes answer lines. One thread."""

    def __init__(self, served: ServedModel, out: TextIO, options: argparse.Namespace) -> None:
        self._out = out
        self._shelf = AdapterShelf(served.model, options.max_adapters)
        self._intake = Intake(served, self._shelf)
        self._encoding = EncodeEngine(served, self._shelf)
        self._generating: DecoderEngine | Seq2SeqEngine | None = None
        if served.generates and served.family == "seq2seq":
            self._generating = Seq2SeqEngine(served.model, self._shelf, max_rows=options.max_rows)
        elif served.generates:
            cache_bytes = options.cache_mebibytes << 20
            self._generating = DecoderEngine(
                served.model, self._shelf, max_rows=options.max_rows, cache_bytes=cache_bytes
            )
        self._running: dict[str, GenerationJob | EncodeJob] = {}
        self._state_at = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def handle(self, line: str) -> None:
        """Takes one request line; a refusal is an answer, never an end of the process."""
        request_id, request = parse_line(line)
        if isinstance(request, CancelRequest):
            self._cancel(request.id)
            return
        try:
            if isinstance(request, ServeRefusal):
                raise request
            if request.id in self._running:
                raise ServeRefusal("invalid_request", f"Request id {request.id} is already in flight.")
            if isinstance(request, GenerateRequest):
                self._begin_generation(self._intake.generation(request))
            else:
                job = self._intake.encoding(request)
                self._running[job.id] = job
                self._encoding.submit(job)
        except Exception as error:
            self._fail(request_id, error)

    def step(self) -> None:
        """One step of every engine."""
        if self._generating is not None:
            for progress in self._generating.step():
                self._report(progress)
        for job in self._encoding.step():
            self._finish_encoding(job)
        if not self.busy or time.monotonic() - self._state_at > STATE_SECONDS:
            self.write_state()

    def write_state(self) -> None:
        self._state_at = time.monotonic()
        self.write({"type": "state", "rss_bytes": rss_bytes(), "adapters": self._shelf.paths})

    def write_ready(self, context_length: int) -> None:
        ready = {"type": "ready", "pid": os.getpid(), "context_length": context_length}
        self.write({**ready, "rss_bytes": rss_bytes()})

    def write(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message, allow_nan=False, separators=(",", ":")) + "\n")
        self._out.flush()

    def _begin_generation(self, job: GenerationJob) -> None:
        if self._generating is None:
            raise RuntimeError("a generation was admitted to a model that generates nothing")
        self._running[job.id] = job
        self._generating.submit(job)
        self.write({"type": "start", "id": job.id, "prompt_tokens": job.num_prompt_tokens})

    def _cancel(self, request_id: str) -> None:
        if self._running.pop(request_id, None) is None:
            return
        if self._generating is not None:
            self._generating.cancel(request_id)
        self._encoding.cancel(request_id)
        self.write({"type": "cancelled", "id": request_id})

    def _report(self, progress: Progress) -> None:
        job = progress.job
        if progress.error is not None:
            self._fail(job.id, progress.error)
            return
        if progress.piece:
            self.write({"type": "delta", "id": job.id, **_piece_fields(progress.piece)})
        if progress.finish_reason is not None:
            del self._running[job.id]
            counts = {
                "prompt_tokens": job.num_prompt_tokens,
                "completion_tokens": job.generation.num_completion_tokens,
            }
            self.write({"type": "end", "id": job.id, "finish_reason": progress.finish_reason, **counts})

    def _finish_encoding(self, job: EncodeJob) -> None:
        if job.error is not None:
            self._fail(job.id, job.error)
            return
        del self._running[job.id]
        if job.conclude is not None:
            try:
                told = {"predictions": job.conclude(job.answers), "num_tokens": job.num_tokens}
            except Exception as error:
                self._fail(job.id, error)
            else:
                self.write({"type": "predictions", "id": job.id, **told})
            return
        rows = [cast("list[float]", cast("Any", row).tolist()) for row in job.answers]
        if job.head is None:
            vectors = [base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode("ascii") for row in rows]
            self.write({"type": "vectors", "id": job.id, "vectors": vectors, "num_tokens": job.num_tokens})
            return
        scores = [_ranked(job.head.labels, row) for row in rows]
        self.write({"type": "scores", "id": job.id, "scores": scores, "num_tokens": job.num_tokens})

    def _fail(self, request_id: str | None, error: Exception) -> None:
        if request_id is not None:
            self._running.pop(request_id, None)
        code, message = _described(error)
        self.write({"type": "error", "id": request_id, "code": code, "message": message})


def _described(error: Exception, doing: str = "The model process failed while answering") -> tuple[str, str]:
    """Code and sentence for an answer; the trace of what nobody foresaw goes to stderr."""
    if isinstance(error, ServeRefusal):
        return error.code, error.message
    if isinstance(error, TrainFailure):
        return "inference_failed", f"{error} {error.hint}"
    traceback.print_exception(error, file=sys.stderr)
    return "inference_failed", f"{doing}: {type(error).__name__}: {error}"


def _piece_fields(piece: Piece) -> dict[str, Any]:
    return {"text": piece.text, "logprobs": [_logprob_fields(entry) for entry in piece.logprobs]}


def _logprob_fields(entry: TokenLogprob) -> dict[str, Any]:
    return {**asdict(entry.chosen), "top": [asdict(alternative) for alternative in entry.top]}


def _ranked(labels: tuple[str, ...], probabilities: list[float]) -> list[dict[str, Any]]:
    pairs = sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1])
    return [{"label": label, "probability": probability} for label, probability in pairs]


def rss_bytes() -> int:
    """Resident memory now where /proc tells it, else its peak."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _parse_options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fettle_trainer serve", description="Serve one base model over JSON lines."
    )
    parser.add_argument(
        "--base", type=Path, required=True, help="folder with config.json, tokenizer and safetensors"
    )
    parser.add_argument("--family", choices=["decoder", "encoder", "seq2seq"], required=True)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--max-adapters", type=int, default=16, help="adapters kept in memory")
    parser.add_argument("--max-rows", type=int, default=16, help="answers that grow at the same time")
    parser.add_argument(
        "--cache-mebibytes", type=int, default=1024, help="bound of the keys and values of a batch"
    )
    return parser.parse_args(argv)


def _take_stdout() -> TextIO:
    """The real stdout for answers alone: whatever prints afterwards, in Python or in C, lands on stderr."""
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w", encoding="ascii", newline="\n")
    os.dup2(2, 1)
    return out


def _read_requests(requests: "queue.SimpleQueue[str]") -> None:
    """Reader thread. The end of stdin means that nobody reads our answers: there is nothing left to do."""
    for line in sys.stdin.buffer:
        requests.put(line.decode("utf-8", "replace"))
    os._exit(0)


def _load(options: argparse.Namespace, out: TextIO) -> ModelProcess:
    """Model and process, or the last line and the end."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    use_cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if use_cuda else "cpu")
    try:
        # float32 on a CPU: bfloat16 is emulated on most of them, slower and less exact.
        served = load_model(
            options.base,
            options.family,
            device=device,
            dtype=torch.bfloat16 if use_cuda else torch.float32,
        )
        process = ModelProcess(served, out, options)
    except Exception as error:
        code, message = _described(error, f"The model in {options.base} cannot be loaded")
        out.write(json.dumps({"type": "fatal", "code": code, "message": message}) + "\n")
        out.flush()
        # Not sys.exit: the reader thread holds stdin, and the interpreter would abort waiting for it.
        os._exit(1)
    process.write_ready(served.context_length)
    return process


def main(argv: list[str]) -> int:
    """Never returns: the process ends when stdin closes (0) or when the model cannot be loaded (1)."""
    options = _parse_options(argv)
    out = _take_stdout()
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True, name="requests").start()
    process = _load(options, out)
    while True:
        if not process.busy:
            process.handle(requests.get())
        while not requests.empty():
            process.handle(requests.get())
        process.step()
