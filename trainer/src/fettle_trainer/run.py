"""`train SPEC.json`: signals, exit codes, and the event that ends an attempt. Light to import: the first sign
of life is written before PyTorch is loaded."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from .events import EventLog, Heartbeat, News
from .failure import StopRequested, TrainFailure, is_disk_full, is_out_of_memory
from .identity import begin_identity
from .light_start import bound_product_caches, collect_from_here, product_kinds
from .light_torch import import_torch
from .spec import SpecError, TrainSpec, read_spec

# Artefact, base model, probe file -> largest difference.
Verifier = Callable[[Path, Path, Path], float]

# As `trainerExit` in packages/contract/src/trainer.ts.
FINISHED, FAILED, BAD_SPEC, DISK_FULL, STOPPED = 0, 1, 2, 74, 75


def train_command(spec_path: Path, verify: Verifier | None = None) -> int:
    """Exit code. `verify` other than the default is for callers that prove the artefact in another way."""
    try:
        spec = read_spec(spec_path)
    except SpecError as error:
        print(error, file=sys.stderr)
        return BAD_SPEC
    bound_product_caches(product_kinds(spec))
    # PyTorch reads it once, when it is loaded.
    os.environ["OMP_NUM_THREADS"] = str(spec.runtime.num_threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_OFFLINE"] = "1"
    check = _stop_on_signal()
    output = Path(spec.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
        log = EventLog(_event_file(output), spec.attempt)
    except OSError as error:
        print(f"Cannot write to output_dir {output}: {error.strerror}.", file=sys.stderr)
        return DISK_FULL if is_disk_full(error) else FAILED
    with Heartbeat(log, spec.runtime.heartbeat_seconds) as heartbeat:
        return _attempt(spec, News(log, heartbeat, check), verify)


def _event_file(output: Path) -> Path:
    """The first rank speaks for the run; what others say is kept for whoever looks for a fault."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        return output / "events.jsonl"
    folder = output / "ranks" / rank
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "events.jsonl"


def _stop_on_signal() -> Callable[[], None]:
    asked: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, remember)
    signal.signal(signal.SIGINT, remember)

    def check() -> None:
        if asked:
            raise StopRequested

    return check


def _attempt(spec: TrainSpec, news: News, verify: Verifier | None) -> int:
    log = news.log
    try:
        # Checksums leave Python's lock to what is loaded beside them.
        identity = begin_identity(spec)
        import_torch()
        from .train import Training
        from .verifier import start_verifier

        verify = verify or start_verifier()
        collect_from_here()
        Training(spec, news, verify, identity=identity).run()
        return FINISHED
    except Exception as error:
        news.heartbeat.end()
        return _ended_by(error, log, news.heartbeat.step)


def _ended_by(error: Exception, log: EventLog, step: int) -> int:
    if isinstance(error, StopRequested):
        log.write("stopped", reason="signal", step=step)
        return STOPPED
    if isinstance(error, TrainFailure):
        return _fail(log, error)
    if is_disk_full(error):
        return _stop_for_disk(log, step, error)
    traceback.print_exception(error)
    return _fail(log, _as_failure(error))


def _as_failure(error: Exception) -> TrainFailure:
    if is_out_of_memory(error):
        return TrainFailure(
            "out_of_memory",
            f"The machine ran out of memory: {(str(error).splitlines() or ['MemoryError'])[0]}.",
            "Lower per_device_train_batch_size or max_length, or choose a smaller model.",
        )
    return TrainFailure(
        "training_failed",
        f"{type(error).__name__}: {error}",
        "Read the trainer's log; if the spec is right, report it.",
    )


def _fail(log: EventLog, failure: TrainFailure) -> int:
    print(f"{failure.code}: {failure} {failure.hint}", file=sys.stderr)
    try:
        log.write("failed", code=failure.code, message=str(failure), hint=failure.hint)
    except OSError as error:
        if is_disk_full(error):
            return DISK_FULL
        raise
    return FAILED


def _stop_for_disk(log: EventLog, step: int, error: Exception) -> int:
    print(f"The disk is full: {error}. The checkpoint before is whole.", file=sys.stderr)
    # Perhaps not one line fits; then the exit code alone says it.
    with contextlib.suppress(OSError):
        log.write("stopped", reason="disk_full", step=step)
    return DISK_FULL
