"""`probe`: what this machine can do, as JSON, in a few seconds."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def probe() -> dict[str, Any]:
    """Versions, threads, devices, and the faster number type."""
    import torch

    from .device import gemm_seconds

    # The server asks while it starts: the fastest of a long while is the machine, not what runs beside.
    seconds = {name: gemm_seconds(dtype, patience=2.0) for name, dtype in _TYPES(torch).items()}
    gflops = {name: round(2 * 512**3 / second / 1e9, 1) for name, second in seconds.items()}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "cpu_count": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gflops": gflops,
        "fastest_dtype": "bfloat16" if gflops["bfloat16"] >= 1.3 * gflops["float32"] else "float32",
        "devices": [_device(torch, index) for index in range(torch.cuda.device_count())],
    }


def four_bits() -> dict[str, Any]:
    """Why a base cannot be trained over in 4 bits here; None: it can. A CPU would be slower by it."""
    import torch

    from .four_bits import missing_package

    why = "PyTorch sees no GPU here" if torch.cuda.device_count() == 0 else missing_package()
    return {"four_bits": why or None}


def _TYPES(torch: Any) -> dict[str, Any]:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _device(torch: Any, index: int) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(index)
    return {"name": facts.name, "memory_bytes": facts.total_memory}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
