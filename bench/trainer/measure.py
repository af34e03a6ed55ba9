"""``measure.py RESULT.json COMMAND...`` runs COMMAND and writes started_at, seconds, peak_rss_bytes and code.

The same ruler for both sides: the kernel's peak of the process and of those it waited for.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

started_at = time.time()
child = subprocess.Popen(sys.argv[2:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
result = {
    "started_at": started_at,
    "seconds": time.time() - started_at,
    "peak_rss_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    "code": os.waitstatus_to_exitcode(status),
}
Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")
