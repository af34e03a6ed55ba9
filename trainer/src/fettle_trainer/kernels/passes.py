"""The passes of passes.c over bf16 tensors, compiled for this processor where there is a C compiler; on a GPU
those of passes_gpu.py. Without either the layers run on PyTorch's own operations, one pass for each: the same
numbers, rounded more often.

What is compiled lies beside the libraries of this Python, under a name made of the source, the compiler and
the processor's features.

Legend: T tokens, E width, F width of the gate, N rows of heads, D width of a head.
"""

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compared import features

MOST_KEYS = 1024
_SOURCE = Path(__file__).with_name("passes.c")
# Sums may be made in any order, and nothing else that -ffast-math allows: what is no number stays none.
_SUMS = "-fno-math-errno -fassociative-math -fno-signed-zeros -fno-trapping-math"
_FLAGS = f"-O3 -march=native -fopenmp -shared -fPIC {_SUMS}"
_SECONDS = 60
_TRITON = "triton"


@cache
def library() -> Any:
    """None where it cannot be made."""
    path = _path()
    if path is None or not (path.exists() or _compiled(path)):
        return None
    try:
        found = ctypes.CDLL(str(path))
    except OSError:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
    faces: dict[str, list[Any]] = {
        "rms_norm": [*[pointer] * 3, ctypes.c_float, *[pointer] * 3, size, size],
        "rms_norm_backward": [*[pointer] * 7, size, size],
        "add": [*[pointer] * 3, size],
        "swiglu": [*[pointer] * 3, size],
        "swiglu_backward": [*[pointer] * 5, size],
        "turn": [*[pointer] * 5, size, size, size],
        "turn_back": [*[pointer] * 5, size, size, size],
        "causal_softmax": [pointer, size, size, size, pointer],
        "causal_softmax_backward": [pointer, pointer, size, size, size, pointer],
    }
    for name, face in faces.items():
        function = getattr(found, name)
        function.argtypes, function.restype = face, None
    return found


def compiled() -> str:
    """Where `library` is; empty where there is none."""
    found = library()
    return "" if found is None else str(found._name)


def _path() -> Path | None:
    """None where there is no compiler."""
    try:
        compiler = subprocess.run(
            ["cc", "--version"], capture_output=True, timeout=_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    made_of = _SOURCE.read_bytes() + _FLAGS.encode() + compiler + features()
    return Path(sys.prefix) / "fettle" / f"passes-{hashlib.sha256(made_of).hexdigest()[:16]}.so"


def _compiled(path: Path) -> bool:
    part = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        command = ["cc", *_FLAGS.split(), "-o", str(part), str(_SOURCE), "-lm"]
        subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True)
        part.replace(path)
    except (OSError, subprocess.SubprocessError):
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def fits(tensor: Tensor) -> bool:
    """Whether it is passed over here: on a CPU, in bf16."""
    return is_used(tensor.dtype, tensor.device)


def is_used(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype == torch.bfloat16 and device.type == "cpu" and library() is not None


def between(dtype: torch.dtype, device: torch.device) -> Any:
    """The module that does what lies between products: this one, `passes_gpu`, or None."""
    return sys.modules[__name__] if is_used(dtype, device) else on_gpu(dtype, device)


def on_gpu(dtype: torch.dtype, device: torch.device) -> Any:
    """The module `passes_gpu`, or None."""
    return _gpu(device) if dtype == torch.bfloat16 and device.type == "cuda" else None


@cache
def _gpu(device: torch.device) -> Any:
    """None where Triton is not there, or cannot compile each of the kernels."""
    if importlib.util.find_spec(_TRITON) is None:
        return None
    try:
        from . import passes_gpu

        passes_gpu.try_all(device)
    except Exception:  # half a package, no compiler, an old driver: whatever it is, PyTorch goes on without
        return None
    return passes_gpu


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def rms_norm(
    x_TE: Tensor, weight_E: Tensor, *, eps: float, added_TE: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """x + added in fp32, its norm in bf16, and T x 1 of 1 / rms."""
    x_TE = x_TE.contiguous()
    added_TE = None if added_TE is None else added_TE.contiguous()
    sum_TE = x_TE if added_TE is None else torch.empty_like(x_TE)
    y_TE = torch.empty_like(x_TE, dtype=torch.bfloat16)
    inverse_T1 = x_TE.new_empty(len(x_TE), 1)
    library().rms_norm(
        _at(x_TE), _at(added_TE), _at(weight_E), eps, _at(sum_TE), _at(y_TE), _at(inverse_T1), *x_TE.shape
    )
    return sum_TE, y_TE, inverse_T1


def rms_norm_backward(
    grad_TE: Tensor, kept: tuple[Tensor, Tensor, Tensor], *, beside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient of x in fp32, and once more in bf16. `kept`: x, 1 / rms, weight."""
    x_TE, inverse_T1, weight_E = kept
    x_TE, grad_TE = x_TE.contiguous(), grad_TE.contiguous()
    beside = None if beside is None else beside.contiguous()
    out_TE, narrowed_TE = torch.empty_like(x_TE), torch.empty_like(x_TE, dtype=torch.bfloat16)
    tensors = (grad_TE, x_TE, inverse_T1, weight_E, beside, out_TE, narrowed_TE)
    library().rms_norm_backward(*map(_at, tensors), *x_TE.shape)
    return out_TE, narrowed_TE


def add(x_TE: Tensor, added_TE: Tensor) -> Tensor:
    """In fp32."""
    x_TE, added_TE = x_TE.contiguous(), added_TE.contiguous()
    out_TE = torch.empty_like(x_TE)
    library().add(_at(x_TE), _at(added_TE), _at(out_TE), x_TE.numel())
    return out_TE


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    y_TF = torch.empty_like(gate_TF)
    library().swiglu(_at(gate_TF), _at(up_TF), _at(y_TF), y_TF.numel())
    return y_TF


def swiglu_backward(grad_TF: Tensor, gate_TF: Tensor, up_TF: Tensor) -> tuple[Tensor, Tensor]:
    grad_TF = grad_TF.contiguous()
    grad_gate, grad_up = torch.empty_like(gate_TF), torch.empty_like(up_TF)
    library().swiglu_backward(*map(_at, (grad_TF, gate_TF, up_TF, grad_gate, grad_up)), grad_TF.numel())
    return grad_gate, grad_up


def turn(source_ND: Tensor, order: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rows of the source in that order; as many as the tables have rows are turned."""
    cos, sin = tables
    rows = source_ND.new_empty(len(order), source_ND.shape[1])
    library().turn(*map(_at, (source_ND.contiguous(), order, cos, sin, rows)), len(cos), *rows.shape)
    return rows


def turn_back(grad_rows: Tensor, inverse: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = tables
    grad_ND = grad_rows.new_empty(len(inverse), grad_rows.shape[1])
    library().turn_back(*map(_at, (grad_rows, inverse, cos, sin, grad_ND)), len(cos), *grad_ND.shape)
    return grad_ND


def causal_softmax_(scores: Tensor, *, group: int, before: int, window: int) -> Tensor:
    """In place. B x (queries x group) x keys, at most `MOST_KEYS`; the first query sees `before` keys and
    itself."""
    library().causal_softmax(_at(scores), *scores.shape, _shape(group, before, window))
    return scores


def causal_softmax_backward_(grad: Tensor, weight: Tensor, *, group: int, before: int, window: int) -> Tensor:
    """In place."""
    library().causal_softmax_backward(_at(grad), _at(weight), *grad.shape, _shape(group, before, window))
    return grad


@cache
def _shape(group: int, before: int, window: int) -> Any:
    return (ctypes.c_ssize_t * 3)(group, before, window)
