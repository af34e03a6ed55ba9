"""What has to be so before anything is imported."""

import os
from pathlib import Path

# Triton asks when it is imported, which many packages do: without a GPU it interprets its kernels.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
