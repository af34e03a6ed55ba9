"""``ready.py RESULT.json SPEC.json``: our trainer when one was already waiting, as the server keeps one after
a run of the same base model.

Writes started_at, the moment the run was handed over, and how long the trainer had waited by then.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# Longer than the libraries take to load, on a slow machine too.
_MOST_SECONDS = 120
_AS_DESCRIPTOR_3 = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execv(sys.executable, [sys.executable, "-m", "fettle_trainer", "wait", "--base", sys.argv[2]])
"""


def is_idle(group: int) -> bool:
    """Waits for its line: nothing computed for a second, by it or by what it started."""
    before = processor_ticks(group)
    time.sleep(1)
    return processor_ticks(group) == before


def processor_ticks(group: int) -> int:
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
    return ticks


def main() -> None:
    spec = Path(sys.argv[2]).resolve()
    asked, gate = os.pipe()
    base = json.loads(spec.read_bytes())["base_model"]["path"]
    command = [sys.executable, "-c", _AS_DESCRIPTOR_3, str(asked), base]
    began = time.monotonic()
    trainer = subprocess.Popen(command, pass_fds=(asked,), stdout=sys.stderr, process_group=0)
    os.close(asked)
    time.sleep(1)
    while not is_idle(trainer.pid) and time.monotonic() - began < _MOST_SECONDS:
        pass
    waited = time.monotonic() - began
    started_at = time.time()
    line = {"spec": str(spec), "log": str(spec.with_name("stderr.log"))}
    os.write(gate, json.dumps(line).encode() + b"\n")
    os.close(gate)
    _, status, usage = os.wait4(trainer.pid, 0)
    result = {
        "started_at": started_at,
        "seconds": time.time() - started_at,
        "waited_seconds": waited,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "code": os.waitstatus_to_exitcode(status),
    }
    Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
