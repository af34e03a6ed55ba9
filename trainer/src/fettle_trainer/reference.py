"""What another model says of a run's rows, computed once, before the first step: no second model stays in
memory. Kept on disk beside the tokenised rows, so that a later attempt goes on with the same bits."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

from torch import Tensor

from .data import TokenRows
from .distributed import Ranks
from .tensor_files import TensorFileError, read_metadata, read_tensors, write_tensors


def remembered(
    path: Path, compute: Callable[[], Tensor], *, key: str, rows: TokenRows, ranks: Ranks
) -> Tensor:
    """R x K, read from `path` where that was made under the same key for as many rows, else computed. The
    first of `ranks` looks and writes: where a model is split over them, either all compute or none does.
    Raises OSError, TensorFileError (disk full)."""
    known = ranks.from_first(_read(path, key) if ranks.first else None)
    if known is not None and len(known) == len(rows):
        return known
    answers = cast("Tensor", ranks.from_first(compute()))
    if not ranks.first:
        return answers
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        write_tensors(partial, {"answers": answers}, {"key": key})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return answers


def _read(path: Path, key: str) -> Tensor | None:
    """None when the file is not there, damaged or another run's."""
    try:
        return read_tensors(path)["answers"] if read_metadata(path).get("key") == key else None
    except (OSError, ValueError, KeyError, TensorFileError):
        return None
