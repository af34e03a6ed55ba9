"""The rows of a run: read, told apart, and refused when nothing can be learnt from them."""

from dataclasses import dataclass
from pathlib import Path

from .data import Dataset, Tokeniser, TokenRows, load_dataset, tokenizer_sha256
from .events import News
from .failure import TrainFailure
from .models import Loaded
from .spec import TrainSpec


@dataclass(frozen=True, slots=True)
class RunRows:
    """`validation` is empty when nothing is held out."""

    train: TokenRows
    validation: TokenRows


def load_rows(spec: TrainSpec, loaded: Loaded, news: News) -> tuple[RunRows, Dataset]:
    """The rows, and what was found while reading those to train on. Raises TrainFailure when none is left."""
    tokeniser = Tokeniser(loaded.prompts, spec.task, loaded.max_length, spec.data.labels)
    shared = spec.runtime.cache_dir
    cache = Path(shared) if shared else Path(spec.output_dir) / "cache"
    tokenizer = tokenizer_sha256(Path(spec.base_model.path))

    def read(path: Path) -> Dataset:
        news.heartbeat.mark("reading")
        dataset = load_dataset(
            path,
            tokeniser,
            cache=cache,
            tokenizer_sha256=tokenizer,
            before_row=lambda: news.heartbeat.mark("tokenising", 1),
        )
        news.heartbeat.mark("reading")
        return dataset

    dataset = Dataset.joined([read(path) for path in spec.data.train_paths])
    if len(dataset.rows) == 0:
        reason = dataset.refused[0].message if dataset.refused else "the file is empty."
        raise TrainFailure(
            "invalid_training_file",
            f"None of {dataset.num_refused} rows can be used for training. The first: {reason}",
            "Mend the rows; each refusal is listed with its line.",
        )
    if spec.data.validation_path is None:
        return RunRows(dataset.rows, dataset.rows.select([])), dataset
    other = read(Path(spec.data.validation_path))
    if other.num_refused:
        first = other.refused[0]
        news.log.log(
            "warn",
            f"{other.num_refused} validation rows cannot be used. Line {first.line}: {first.message}",
        )
    return RunRows(dataset.rows, other.rows), dataset
