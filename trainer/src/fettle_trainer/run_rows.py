"""The rows of a run: read, told apart, and refused when nothing can be learnt from them."""

from dataclasses import dataclass
from pathlib import Path

from .data import Dataset, Tokeniser, TokenRows, tokenizer_sha256
from .events import News
from .models import Loaded
from .spec import TrainSpec


@dataclass(frozen=True, slots=True)
class RunRows:
    """`validation` is empty when nothing is held out."""

    train: TokenRows
    validation: TokenRows


def load_rows(spec: TrainSpec, loaded: Loaded, news: News) -> tuple[RunRows, Dataset]:
    """The rows, and what was found while the training rows were read. Raises TrainFailure when none is left."""
    tokeniser = Tokeniser(loaded.prompts, spec.task, loaded.max_length, spec.data.labels)
    cache = Path(spec.output_dir) / "cache"
    tokenizer = tokenizer_sha256(Path(spec.base_model.path))
