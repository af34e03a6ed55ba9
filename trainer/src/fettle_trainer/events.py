"""The run's event file: JSON lines, appended, in order over all attempts."""

import contextlib
import json
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

# Lines of steps and heartbeats are synced to disk at most this often; a kill loses nothing either way, a
# power cut at most this much. All other events are on disk before `write` returns.
SYNC_SECONDS = 1.0
_LAZY = frozenset({"step", "heartbeat"})


class EventLog:
    """Thread-safe. Opening cuts off a torn last line and goes on counting `seq`."""

    def __init__(self, path: Path, attempt: int) -> None:
        self._attempt = attempt
        self._lock = threading.Lock()
        self._seq = _mend(path)
        self._file = path.open("ab", buffering=0)
        self._synced = 0.0

    def write(self, kind: str, **content: Any) -> None:
        """Appends one event. Raises OSError (ENOSPC) when the disk is full; nothing is torn then."""
        with self._lock:
            event = {
                "seq": self._seq + 1,
                "attempt": self._attempt,
                "time": time.time(),
                "type": kind,
                **content,
            }
            line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            end = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(line) != len(line):
                    raise OSError(28, "No space left on device", self._file.name)
            except OSError:
                self._file.truncate(end)
                raise
            self._seq += 1
            now = time.monotonic()
            if kind not in _LAZY or now - self._synced >= SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = now

    def log(self, level: str, message: str, **data: Any) -> None:
        """A message for the user."""
        self.write("log", level=level, message=message, **({"data": data} if data else {}))

    def close(self) -> None:
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()


def _mend(path: Path) -> int:
    """Cuts a torn last line off and returns the last `seq` (0: none)."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        tail_start = size
        tail = b""
        # Read backwards until the tail holds a whole line: its own end and the one before it.
        while tail_start > 0 and tail.rstrip(b"\n").count(b"\n") < 2:
            step = min(65536, tail_start)
            tail_start -= step
            file.seek(tail_start)
            tail = file.read(step) + tail
        whole = tail.rfind(b"\n") + 1
        if tail_start + whole < size:
            file.truncate(tail_start + whole)
            os.fsync(file.fileno())
        lines = tail[:whole].splitlines()
        if not lines:
            return 0
        last = cast("dict[str, Any]", json.loads(lines[-1]))
        return int(last["seq"])


# As `trainerPhaseSchema` in packages/contract/src/trainer.ts, which says what each one is.
Phase = Literal[
    "starting",
    "loading",
    "reading",
    "tokenising",
    "training",
    "optimiser",
    "evaluating",
    "saving",
    "exporting",
    "verifying",
]


@dataclass(frozen=True, slots=True)
class _Mark:
    phase: Phase
    at: float
    work: float
    expected_s: float | None


@dataclass(frozen=True, slots=True)
class _Pace:
    slowest_s: float
    largest: float


class Heartbeat:
    """Writes a sign of life every `seconds` from a thread of its own; `step` is set by the training loop.

    The thread beats on when the main thread hangs: each beat also tells how long ago that made its last mark.
    """

    def __init__(self, log: EventLog, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.step = 0
        self._log = log
        self._seconds = seconds
        self._now = now
        self._paces: dict[Phase, _Pace] = {}
        # One object, replaced as a whole: the thread never sees half a mark.
        self._mark = _Mark("starting", now(), 0.0, None)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """No beat comes after it, so that what ends an attempt is its last event."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def mark(self, phase: Phase, work: float = 0.0) -> None:
        """The main thread is alive and begins a piece of `phase`. `work`: its size, in any unit that grows
        with the time it takes; 0 when pieces of the phase cannot be compared."""
        now, past = self._now(), self._mark
        if past.work:
            pace = self._paces.get(past.phase, _Pace(0.0, 0.0))
            self._paces[past.phase] = _Pace(max(pace.slowest_s, now - past.at), max(pace.largest, past.work))
        self._mark = _Mark(phase, now, work, self._expected_s(phase, work))

    def beat(self) -> None:
        """Writes one heartbeat. Raises OSError when the disk is full."""
        mark = self._mark
        self._log.write(
            "heartbeat",
            step=self.step,
            rss_bytes=rss_bytes(),
            phase=mark.phase,
            idle_s=round(self._now() - mark.at, 3),
            expected_s=mark.expected_s,
        )

    def _expected_s(self, phase: Phase, work: float) -> float | None:
        """As long as the slowest piece so far; in proportion more when this one is larger than all."""
        pace = self._paces.get(phase)
        if pace is None or not work:
            return None
        return round(pace.slowest_s * max(1.0, work / pace.largest), 3)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            # Disk full: the training loop meets it too and stops in order.
            with contextlib.suppress(OSError):
                self.beat()


@dataclass(frozen=True, slots=True)
class News:
    """To and from the outside. `check` raises StopRequested when the process has been asked to end."""

    log: EventLog
    heartbeat: Heartbeat
    check: Callable[[], None]


def rss_bytes() -> int:
    """Resident memory of this process now; the peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return peak_rss_bytes()
    return pages * os.sysconf("SC_PAGESIZE")


def peak_rss_bytes() -> int:
    """Of this program: what the kernel counts for a process begins with the one that started it."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except (OSError, ValueError):
        found = None
    if found is not None:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
