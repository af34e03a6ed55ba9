"""The rows of a run: read, told apart, and refused when nothing can be learnt from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .checksums import tokenizer_sha256
from .data import Dataset, Tokeniser, TokenRows, load_dataset
from .events import News
from .failure import TrainFailure
from .models import Loaded
from .spec import TrainSpec


@dataclass(frozen=True, slots=True)
class RunRows:
    """`validation` is empty when nothing is held out."""

    train: TokenRows
    validation: TokenRows


def cache_of(spec: TrainSpec) -> Path:
    """Where tokenised rows are kept, and whatever else the runs of a project share."""
    shared = spec.runtime.cache_dir
    return Path(shared) if shared else Path(spec.output_dir) / "cache"


def read_rows(
    spec: TrainSpec, tokeniser: Tokeniser, news: News, *, model: Path, paths: Sequence[Path]
) -> Dataset:
    """One file after the other, as tokens of the model in the folder `model`."""
    tokenizer = tokenizer_sha256(model)

    def read(path: Path) -> Dataset:
        news.heartbeat.mark("reading")
        dataset = load_dataset(
            path,
            tokeniser,
            cache=cache_of(spec),
            tokenizer_sha256=tokenizer,
            before_row=lambda: news.heartbeat.mark("tokenising", 1),
        )
        news.heartbeat.mark("reading")
        return dataset

    return Dataset.joined([read(path) for path in paths])


def load_rows(spec: TrainSpec, loaded: Loaded, news: News) -> tuple[RunRows, Dataset]:
    """The rows, and what was found while reading those to train on. Raises TrainFailure when none is left."""
    tokeniser = Tokeniser(loaded.prompts, spec.task, loaded.max_length, spec.data.labels)
    model = Path(spec.base_model.path)
    dataset = read_rows(spec, tokeniser, news, model=model, paths=spec.data.train_paths)
    if len(dataset.rows) == 0:
        reason = dataset.refused[0].message if dataset.refused else "the file is empty."
        raise TrainFailure(
            "invalid_training_file",
            f"None of {dataset.num_refused} rows can be used for training. The first: {reason}",
            "Mend the rows; each refusal is listed with its line.",
        )
    if spec.data.validation_path is None:
        return RunRows(dataset.rows, dataset.rows.select([])), dataset
    other = read_rows(spec, tokeniser, news, model=model, paths=[Path(spec.data.validation_path)])
    if other.num_refused:
        first = other.refused[0]
        news.log.log(
            "warn",
            f"{other.num_refused} validation rows cannot be used. Line {first.line}: {first.message}",
        )
    return RunRows(dataset.rows, other.rows), dataset
