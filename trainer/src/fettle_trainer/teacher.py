"""A teacher: another tuned model, whose answers to the rows a run trains on are learnt beside their labels.

    teacher ── answers each row once ── cache ── forgotten ── student ── learns labels and answers

It answers before the student is loaded, so that two models are never in memory, and on the first rank alone.
What it answers follows from the run's identity: an attempt that does not find the cache computes the same.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .artefact import load_artefact
from .data import Tokeniser, TokenRows
from .device import Compute, dtype_name
from .distributed import ALONE, Ranks
from .events import News
from .failure import TrainFailure, is_out_of_memory
from .model_folder import check_adapter_folder, check_model_folder
from .models import load_prompts, quickened
from .reference import remembered
from .run_rows import RunRows, read_rows
from .serve_artefact import Artefact, read_artefact
from .serve_refusal import ServeRefusal
from .spec import BaseModel, TrainSpec
from .step import Stepper
from .tasks.multilabel import marks_of
from .tensor_files import integers

_TELL_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Answers:
    """`answers_RK`: fp32, to the rows of these lines: logits in the order of the run's labels, or a number in
    what the run learns numbers in."""

    teacher: str
    lines: Tensor
    answers_RK: Tensor

    def beside(self, rows: TokenRows) -> TokenRows:
        """The student's rows, each with its answer. Raises TrainFailure."""
        if torch.equal(self.lines, rows.lines):
            return replace(rows, reference=self.answers_RK)
        apart = set(integers(self.lines)) ^ set(integers(rows.lines))
        raise TrainFailure(
            "invalid_training_file",
            f"Line {min(apart, default=1)} says something to only one of model and teacher {self.teacher!r}: "
            "their tokenizers differ in what they leave of a text.",
            "Write a word into that row, or take it out.",
        )


def taught(rows: RunRows, answers: Answers | None, ranks: Ranks) -> RunRows:
    """Rows to train on with their answers, which the first rank has. Raises TrainFailure."""
    train = rows.train if answers is None else answers.beside(rows.train)
    return replace(rows, train=replace(train, reference=ranks.from_first(train.reference)))


def answer_rows(spec: TrainSpec, compute: Compute, news: News, *, key: Callable[[], str]) -> Answers | None:
    """None for a run without a teacher. `key`: of the run, with all that the answers follow from. Raises
    TrainFailure, StopRequested, OSError."""
    teacher = spec.teacher
    if teacher is None:
        return None
    facts = _facts(teacher, spec)
    news.heartbeat.mark("reading")
    folder = Path(teacher.path)
    length = facts.max_length or spec.hyperparameters.max_length
    tokeniser = Tokeniser(load_prompts(folder), spec.task, length, spec.data.labels)
    dataset = read_rows(spec, tokeniser, news, model=folder, paths=spec.data.train_paths)
    rows = dataset.rows
    found = remembered(
        Path(spec.output_dir) / "cache" / "teacher.safetensors",
        lambda: _asked_and_forgotten(spec, compute, news, teacher=teacher, rows=rows),
        key=f"{key()} {dtype_name(compute.dtype)}",
        rows=rows,
        ranks=ALONE,
    )
    answers = _as_learnt(found, facts, spec)
    cut = f", {dataset.num_truncated} of them cut to {length} tokens" if dataset.num_truncated else ""
    agreement, told = _agreement(answers, rows, spec)
    news.log.log(
        "info",
        f"The teacher {teacher.name} has answered the {len(rows)} rows to train on{cut}, {told}.",
        teacher=teacher.name,
        num_truncated=dataset.num_truncated,
        **agreement,
    )
    return Answers(teacher.name, rows.lines, answers)


def _facts(teacher: BaseModel, spec: TrainSpec) -> Artefact:
    """What the teacher was tuned for. Raises TrainFailure when it answers something else."""
    check_model_folder(Path(teacher.path))
    if teacher.adapter_path is not None:
        check_adapter_folder(Path(teacher.adapter_path))
    try:
        facts = read_artefact(Path(teacher.adapter_path or teacher.path))
    except ServeRefusal as refusal:
        raise _refused(teacher, refusal.message) from refusal
    if facts.task != spec.task:
        tuned = "was not tuned here" if facts.task is None else f"was tuned for the task {facts.task!r}"
        raise _refused(teacher, f"it {tuned}, and this run's task is {spec.task!r}.")
    known, wanted = facts.labels or (), spec.data.labels or ()
    lacking = [repr(label) for label in wanted if label not in known]
    more = [repr(label) for label in known if label not in wanted]
    if lacking or more:
        parts = [f"it does not know {', '.join(lacking)}"] if lacking else []
        parts += [f"this run does not know its {', '.join(more)}"] if more else []
        raise _refused(teacher, f"{' and '.join(parts)}.")
    return facts


def _refused(teacher: BaseModel, why: str) -> TrainFailure:
    return TrainFailure(
        "incompatible_method",
        f"{teacher.name} cannot teach this run: {why}",
        "Choose a teacher that was tuned for the same task with the same labels, or leave it out.",
    )


def _asked_and_forgotten(
    spec: TrainSpec, compute: Compute, news: News, *, teacher: BaseModel, rows: TokenRows
) -> Tensor:
    """R x K, its logits as they are."""
    try:
        return _ask(spec, compute, news, teacher=teacher, rows=rows)
    finally:
        gc.collect()  # what stands in a model's layers points back at it


def _ask(spec: TrainSpec, compute: Compute, news: News, *, teacher: BaseModel, rows: TokenRows) -> Tensor:
    news.heartbeat.mark("loading")
    base = Path(teacher.path)
    artefact = base if teacher.adapter_path is None else Path(teacher.adapter_path)
    loaded = load_artefact(artefact, base, compute.dtype)
    loaded.model.requires_grad_(False)
    loaded.model.to(compute.device)
    loaded = quickened(loaded, compute.dtype, asked=spec.runtime.layers or "auto")
    stepper = Stepper(loaded, spec.task, dtype=compute.dtype)
    size = spec.hyperparameters.per_device_train_batch_size
    if loaded.family == "decoder" and not loaded.packed:
        size = 1  # filled up, it would have to be told which token is no text
    news.log.log("info", f"The teacher {teacher.name} answers {len(rows)} rows; {loaded.layers}.")
    return _fitting(lambda most: stepper.references(rows, most, _begin(news, -(-len(rows) // most))), size)


def _begin(news: News, num_batches: int) -> Callable[[int], None]:
    """For `Stepper`: leaves when the process has been asked to end, else makes a mark, and tells now and then
    how far the teacher is."""
    done, told_at = 0, time.monotonic()

    def begin(positions: int) -> None:
        nonlocal done, told_at
        news.check()
        news.heartbeat.mark("evaluating", positions)
        if time.monotonic() - told_at > _TELL_SECONDS:
            told_at = time.monotonic()
            news.log.log("info", f"The teacher has answered {done / num_batches:.0%} of the rows.")
        done += 1

    return begin


def _fitting(work: Callable[[int], Tensor], rows: int) -> Tensor:
    """`work` by batches of so many rows; by half as many after each lack of memory."""
    while True:
        try:
            return work(rows)
        except Exception as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
        rows //= 2


def _as_learnt(answers_RK: Tensor, facts: Artefact, spec: TrainSpec) -> Tensor:
    """In the run's order of labels, or in its unit."""
    if spec.task == "regression":
        mean, std = facts.target or (0.0, 1.0)
        own = spec.hyperparameters
        return ((answers_RK.double() * std + mean - own.target_mean) / own.target_std).float()
    known = facts.labels or ()
    return answers_RK[:, [known.index(label) for label in spec.data.labels or ()]]


def _agreement(answers_RK: Tensor, rows: TokenRows, spec: TrainSpec) -> tuple[dict[str, float], str]:
    """How near the teacher is to the labels, as numbers and in words."""
    if spec.task == "regression":
        own = spec.hyperparameters
        guesses = answers_RK[:, 0].double() * own.target_std + own.target_mean
        apart = float((guesses - rows.labels.view(torch.float64)).abs().mean())
        return {"mean_distance": apart}, f"on average {apart:.3g} from their scores"
    if spec.task == "classification":
        same, words = answers_RK.argmax(dim=1) == rows.labels, "as their labels say"
    else:
        same, words = ((answers_RK > 0) == marks_of(rows).bool()).all(dim=1), "with exactly their labels"
    share = float(same.double().mean())
    return {"agreement": share}, f"{share:.0%} of them {words}"
