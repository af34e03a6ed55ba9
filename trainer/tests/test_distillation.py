"""A student learns from a teacher: the loss is Hinton's, the answers are the teacher's own, and nothing else
changes."""

import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from test_step import CPU, make_plain
from tiny import LABELS, class_rows, make_decoder, make_encoder, make_spec, task_rows, write_rows
from torch import Tensor
from torch.nn import functional
from training import Forked, events_of, of_type, train

from fettle_trainer.artefact import load_artefact
from fettle_trainer.checkpoint import CheckpointFolder
from fettle_trainer.data import Tokeniser, TokenRows, load_dataset
from fettle_trainer.events import EventLog, Heartbeat, News
from fettle_trainer.models import load_for_training
from fettle_trainer.spec import SpecError, TrainSpec, parse_spec
from fettle_trainer.step import Stepper
from fettle_trainer.tasks import objective_of
from fettle_trainer.tasks.regression import Regression
from fettle_trainer.teacher import answer_rows

W, T = 0.3, 3.0
DISTILLED = {"hyperparameters__distill_weight": W, "hyperparameters__distill_temperature": T}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("distillation")
    make_encoder(made / "bert")
    make_decoder(made / "llama")
    return made


def spec_of(
    folder: Path, output: Path, kind: str = "bert", task: str = "classification", **changes: Any
) -> Any:
    rows = folder / f"{task}.jsonl"
    if not rows.exists():
        write_rows(rows, task_rows(task, 24, seed=1))
    settings: dict[str, Any] = {
        "task": task, "method": "full", "hyperparameters__max_length": 64, "hyperparameters__dropout": 0.0,
        "base_model__family": "encoder" if kind == "bert" else "decoder",
        "data__labels": None if task == "regression" else LABELS, **changes,
    }  # fmt: skip
    return make_spec(folder / kind, rows, output, **settings)


def taught_by(model: Path, *, kind: str = "encoder", adapter: Path | None = None) -> dict[str, Any]:
    return {
        "name": "ft:teacher",
        "path": str(model),
        "family": kind,
        "adapter_path": None if adapter is None else str(adapter),
    }


def tuned(
    folder: Path, name: str, *, kind: str = "bert", task: str = "classification", **changes: Any
) -> Path:
    """The artefact of a run that was not taught; made once."""
    output = folder / name
    if not (output / "artefact").exists():
        code, events = train(spec_of(folder, output, kind, task, **changes))
        assert code == 0, events[-1]
    return output / "artefact"


# ---------------------------------------------------------------- the loss


def prepared(folder: Path, tmp_path: Path, task: str, kind: str, **changes: Any) -> tuple[Stepper, TokenRows]:
    spec = parse_spec(spec_of(folder, tmp_path / "out", kind, task, **DISTILLED, **changes))
    loaded = load_for_training(spec, CPU)
    loaded.set_training()
    tokeniser = Tokeniser(loaded.prompts, spec.task, loaded.max_length, spec.data.labels)
    path = Path(spec.data.train_path)
    rows = load_dataset(path, tokeniser, cache=folder / "cache", tokenizer_sha256=kind).rows
    width = 1 if task == "regression" else len(LABELS)
    answers = 2 * torch.randn(len(rows), width, generator=torch.Generator().manual_seed(9))
    rows = replace(rows, reference=answers)
    objective = objective_of(spec.task).tuned(spec.hyperparameters, rows)
    return Stepper(loaded, spec.task, objective=objective), rows


def by_hand(task: str, student: Tensor, teacher: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over rows, or over rows and labels. `weights`: of each row, or of each label where it is there."""
    if task == "classification":
        p, q = (teacher / T).softmax(-1), (student / T).log_softmax(-1)
        hard = functional.cross_entropy(student, targets, reduction="none")
        soft = T**2 * (p * (p.log() - q)).sum(-1)
        return (weights * ((1 - W) * hard + W * soft)).sum() / weights.sum()
    if task == "multilabel_classification":
        p, q = (teacher / T).sigmoid(), (student / T).sigmoid()
        goals = targets.to(student.dtype)
        hard = functional.binary_cross_entropy_with_logits(student, goals, pos_weight=weights)
        soft = -(T**2) * (p * q.log() + (1 - p) * (1 - q).log()).mean()
        return (1 - W) * hard + W * soft
    hard = (student[:, 0] - ((targets - 50.0) / 8.0).to(student.dtype)).square().mean()
    return (1 - W) * hard + W * (student[:, 0] - teacher[:, 0]).square().mean()


WAYS = [
    ("classification", "bert", {}),
    ("classification", "bert", {"hyperparameters__class_weights": "balanced"}),
    ("classification", "llama", {}),
    ("multilabel_classification", "bert", {}),
    ("multilabel_classification", "bert", {"hyperparameters__class_weights": "balanced"}),
    ("regression", "bert", {"hyperparameters__target_mean": 50.0, "hyperparameters__target_std": 8.0}),
]


def weights_of(stepper: Stepper, task: str, rows: TokenRows, chosen: list[int]) -> Tensor:
    by_class = torch.tensor(list(stepper.objective.weights) or [1.0] * len(LABELS))
    return by_class[rows.labels[chosen]] if task == "classification" else by_class


@pytest.mark.parametrize(("task", "kind", "changes"), WAYS)
def test_the_loss_is_the_formulas_to_a_millionth(
    folder: Path, tmp_path: Path, task: str, kind: str, changes: dict[str, Any]
) -> None:
    stepper, rows = prepared(folder, tmp_path, task, kind, **changes)
    batch = stepper.collate(rows, [4, 0, 9, 2, 7])
    teacher = cast("Tensor", batch.reference).double()
    student = 3 * torch.randn(teacher.shape, generator=torch.Generator().manual_seed(3))
    weights = weights_of(stepper, task, rows, list(batch.rows)).double()
    expected = float(by_hand(task, student.double(), teacher, batch.targets_N, weights))
    found = stepper.objective.loss(student.clone(), batch, 0.0).total / stepper.objective.num_losses(batch)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(
        float(by_hand(task, student.double(), -teacher, batch.targets_N, weights))
    )


@pytest.mark.parametrize(("task", "kind", "changes"), WAYS)
def test_loss_and_gradients_are_those_of_the_formula(
    folder: Path, tmp_path: Path, task: str, kind: str, changes: dict[str, Any]
) -> None:
    stepper, rows = prepared(folder, tmp_path, task, kind, **changes)
    loaded = stepper.loaded
    chosen = [0, 5, 7, 1, 2, 6, 3]
    loss, _, _ = stepper.train_step(rows, [chosen[:3], chosen[3:4], chosen[4:]], lambda _: None)
    found = {n: p.grad.clone() for n, p in loaded.trainable().items() if p.grad is not None}
    make_plain(loaded)
    loaded.model.set_attn_implementation("sdpa")
    loaded.model.zero_grad(set_to_none=True)
    logits, targets = list[Tensor](), list[Tensor]()
    for row in chosen:
        logits.append(loaded.model(input_ids=rows.ids_of(row)[None]).logits.float())
        targets.append(stepper.collate(rows, [row]).targets_N)
    weights = weights_of(stepper, task, rows, chosen)
    teacher = cast("Tensor", rows.reference)[torch.tensor(chosen)]
    expected = by_hand(task, torch.cat(logits), teacher, torch.cat(targets), weights)
    cast("Any", expected).backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert found
    for name, gradient in found.items():
        wanted = loaded.trainable()[name].grad
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5, msg=name)


def test_rows_without_answers_have_the_loss_of_any_run(folder: Path, tmp_path: Path) -> None:
    stepper, rows = prepared(folder, tmp_path, "classification", "bert")
    plain = Stepper(stepper.loaded, "classification")
    held = replace(rows, reference=None)
    assert stepper.evaluate(held, 4, lambda _: None) == plain.evaluate(held, 4, lambda _: None)
    assert stepper.evaluate(rows, 4, lambda _: None).loss != plain.evaluate(held, 4, lambda _: None).loss


def test_a_head_over_remembered_rows_learns_the_answers_too(folder: Path, tmp_path: Path) -> None:
    stepper, rows = prepared(folder, tmp_path, "classification", "bert", method="head")
    before = stepper.train_step(rows, [[0, 1, 2], [3, 4]], lambda _: None)
    assert stepper.remember(rows, 4, lambda _: None) == ""
    after = stepper.train_step(rows, [[0, 1, 2], [3, 4]], lambda _: None)
    assert after[0] == pytest.approx(before[0], rel=1e-5)


# ---------------------------------------------------------------- the teacher's answers


def answers_of(spec: dict[str, Any]) -> Tensor:
    parsed: TrainSpec = parse_spec(spec)
    output = Path(parsed.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    log = EventLog(output / "events.jsonl", 1)
    with Heartbeat(log, 60) as heartbeat:
        found = answer_rows(parsed, CPU, News(log, heartbeat, lambda: None), key=lambda: "test")
    assert found is not None
    return found.answers_RK


def one_by_one(artefact: Path, base: Path, spec: dict[str, Any]) -> Tensor:
    """By transformers' own layers, of each row alone."""
    loaded = load_artefact(artefact, base, torch.float32)
    made: list[Tensor] = []
    for row in class_rows(24, seed=1):
        text = loaded.prompts.classification_text(row["text"], None, 64)
        with torch.no_grad():
            made.append(loaded.model(input_ids=torch.tensor([text.ids])).logits.float())
    return torch.cat(made)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_teacher_is_asked_in_its_own_words(folder: Path, tmp_path: Path, kind: str) -> None:
    """A whole encoder, and an adapter of a decoder whose tokenizer is not the student's."""
    method = "full" if kind == "bert" else "lora"
    made = tuned(folder, f"teacher-{kind}", kind=kind, method=method)
    teacher = taught_by(made) if kind == "bert" else taught_by(folder / kind, kind="decoder", adapter=made)
    spec = spec_of(folder, tmp_path / "out") | {"teacher": teacher}
    answers = answers_of(spec)
    expected = one_by_one(made, folder / kind, spec)
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-4)
    again = answers_of(spec | {"output_dir": str(tmp_path / "again")})
    assert torch.equal(answers, again)


def test_the_teachers_layers_are_those_that_were_asked_for(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, tmp_path / "out")
    spec |= {"teacher": taught_by(tuned(folder, "teacher-bert", kind="bert", method="full"))}
    spec["runtime"] = spec["runtime"] | {"layers": "plain"}
    answers_of(spec)
    said = [event["message"] for event in of_type(events_of(spec), "log")]
    assert any("answers 24 rows; its own layers, as runtime.layers is 'plain'" in one for one in said), said


def test_labels_in_another_order_are_the_same_labels(folder: Path, tmp_path: Path) -> None:
    mixed = ["other", "billing", "login"]
    made = tuned(folder, "teacher-mixed", data__labels=mixed)
    answers = answers_of(spec_of(folder, tmp_path / "out") | {"teacher": taught_by(made)})
    expected = one_by_one(made, folder / "bert", {})
    torch.testing.assert_close(answers, expected[:, [1, 2, 0]], rtol=1e-4, atol=1e-4)


def test_numbers_come_in_the_students_unit(folder: Path, tmp_path: Path) -> None:
    unit = {"hyperparameters__target_mean": 50.0, "hyperparameters__target_std": 8.0}
    made = tuned(folder, "teacher-numbers", task="regression", **unit)
    own = {"hyperparameters__target_mean": 40.0, "hyperparameters__target_std": 2.0}
    spec = spec_of(folder, tmp_path / "out", task="regression", **own) | {"teacher": taught_by(made)}
    in_rows = one_by_one(made, folder / "bert", {}) * 8.0 + 50.0
    torch.testing.assert_close(answers_of(spec), (in_rows - 40.0) / 2.0, rtol=1e-4, atol=1e-3)
    assert isinstance(objective_of("regression"), Regression)


# ---------------------------------------------------------------- runs


def weights_at_the_end(output: Path) -> dict[str, Tensor]:
    folder = CheckpointFolder(output / "checkpoints", 100)
    return folder.load(folder.steps()[-1]).weights


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def test_a_weight_of_zero_is_the_ordinary_run_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    made = tuned(folder, "teacher-bert", kind="bert", method="full")
    dropout = {"hyperparameters__dropout": 0.1}
    ends: list[dict[str, Tensor]] = []
    for name, weight, teacher in (("plain", 0.5, None), ("zero", 0.0, made), ("half", 0.5, made)):
        spec = spec_of(folder, tmp_path / name, hyperparameters__distill_weight=weight, **dropout)
        code, events = train(spec | ({} if teacher is None else {"teacher": taught_by(teacher)}))
        assert code == 0, events[-1]
        ends.append(weights_at_the_end(tmp_path / name))
        told = [event["message"] for event in of_type(events, "log") if "has answered" in event["message"]]
        assert len(told) == (teacher is not None)
    assert same_bits(ends[0], ends[1])
    assert not same_bits(ends[0], ends[2])


def test_a_student_learns_what_its_labels_do_not_say(folder: Path, tmp_path: Path) -> None:
    """The teacher was tuned on true labels; the student's file has them at random."""
    many = write_rows(tmp_path / "true.jsonl", class_rows(90, seed=3))
    long = {"hyperparameters__num_train_epochs": 6, "hyperparameters__learning_rate": 3e-3}
    output = tmp_path / "teacher"
    true = make_spec(
        folder / "bert", many, output, task="classification", method="full", base_model__family="encoder",
        data__labels=LABELS, **long,
    )  # fmt: skip
    code, events = train(true)
    assert code == 0, events[-1]
    rows = class_rows(90, seed=4)
    labels = [row["label"] for row in rows]
    random.Random(5).shuffle(labels)
    wrong = write_rows(
        tmp_path / "wrong.jsonl", [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    )
    held = write_rows(tmp_path / "held.jsonl", class_rows(30, seed=6))
    accuracy: dict[float, float] = {}
    for weight in (0.0, 1.0):
        spec = make_spec(
            folder / "bert", wrong, tmp_path / f"student-{weight}", task="classification", method="full",
            base_model__family="encoder", data__labels=LABELS, data__validation_path=str(held),
            hyperparameters__distill_weight=weight, **long,
        )  # fmt: skip
        code, events = train(spec | {"teacher": taught_by(output / "artefact")})
        assert code == 0, events[-1]
        accuracy[weight] = of_type(events, "evaluation")[-1]["metrics"]["accuracy"]
    assert accuracy[1.0] > 0.9 > 0.6 > accuracy[0.0]


def test_rows_in_several_files_are_answered_in_their_order(folder: Path, tmp_path: Path) -> None:
    """As the folds of a cross-validation are."""
    made = tuned(folder, "teacher-bert", method="full")
    whole = spec_of(folder, tmp_path / "whole") | {"teacher": taught_by(made)}
    rows = class_rows(24, seed=1)
    parts = [write_rows(tmp_path / f"part-{n}.jsonl", rows[n * 12 : n * 12 + 12]) for n in (0, 1)]
    cut = spec_of(folder, tmp_path / "cut")
    cut["data"] |= {"train_path": str(parts[0]), "more_train_paths": [str(parts[1])]}
    answers = answers_of(cut | {"teacher": taught_by(made)})
    torch.testing.assert_close(answers, answers_of(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["classification", "multilabel_classification", "regression"])
def test_how_often_the_teacher_agrees_with_the_labels_is_told(
    folder: Path, tmp_path: Path, task: str
) -> None:
    unit = {"hyperparameters__target_mean": 50.0, "hyperparameters__target_std": 8.0}
    changes = unit if task == "regression" else {}
    name = {"classification": "teacher-bert", "regression": "teacher-numbers"}.get(task, "teacher-several")
    made = tuned(folder, name, task=task, **changes)
    spec = spec_of(folder, tmp_path / "out", task=task, **changes) | {"teacher": taught_by(made)}
    answers, rows = answers_of(spec), task_rows(task, 24, seed=1)
    told = of_type(events_of(spec), "log")[-1]["data"]
    assert told["teacher"] == "ft:teacher"
    if task == "regression":
        apart = [abs(float(a) * 8 + 50 - row["score"]) for a, row in zip(answers[:, 0], rows, strict=True)]
        assert told["mean_distance"] == pytest.approx(sum(apart) / 24, rel=1e-4)
        return
    if task == "classification":
        same = [LABELS[int(a.argmax())] == row["label"] for a, row in zip(answers, rows, strict=True)]
    else:
        given = [{one for one, logit in zip(LABELS, a, strict=True) if logit > 0} for a in answers]
        same = [one == set(row["labels"]) for one, row in zip(given, rows, strict=True)]
    assert told["agreement"] == pytest.approx(sum(same) / 24)


@pytest.mark.parametrize("lost", [False, True], ids=["cache kept", "cache lost"])
def test_a_killed_student_ends_with_the_same_bits(folder: Path, tmp_path: Path, lost: bool) -> None:
    made = tuned(folder, "teacher-bert", kind="bert", method="full")
    every_step = {"runtime__checkpoint_steps": 1, "runtime__keep_checkpoints": 100}
    teacher = {"teacher": taught_by(made)}
    whole = spec_of(folder, tmp_path / "whole", **DISTILLED, **every_step) | teacher
    code, events = train(whole)
    assert code == 0, events[-1]
    cut = spec_of(folder, tmp_path / "cut", **DISTILLED, **every_step) | teacher
    process = Forked(cut)
    assert process.wait_until(lambda: len(of_type(events_of(cut), "step")) >= 2) is None
    process.kill(signal.SIGKILL)
    process.wait()
    if lost:
        shutil.rmtree(tmp_path / "cut" / "cache")
    code, events = train({**cut, "attempt": 2})
    assert code == 0, events[-1]
    assert of_type(events, "started")[-1]["resumed_from_step"] >= 1
    assert same_bits(weights_at_the_end(tmp_path / "whole"), weights_at_the_end(tmp_path / "cut"))


def test_a_resume_with_another_teacher_is_refused(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, tmp_path / "out", runtime__checkpoint_steps=1)
    code, events = train(spec | {"teacher": taught_by(tuned(folder, "teacher-bert", method="full"))})
    assert code == 0, events[-1]
    other = tuned(folder, "teacher-mixed", data__labels=["other", "billing", "login"])
    code, events = train({**spec, "attempt": 2, "teacher": taught_by(other)})
    assert code == 1
    assert events[-1]["code"] == "conflict"
    assert "teacher.weights was SHA-256" in events[-1]["message"]


# ---------------------------------------------------------------- refusals


def with_fewer_labels(folder: Path) -> Path:
    rows = write_rows(folder / "two.jsonl", [r for r in class_rows(24, seed=1) if r["label"] != "other"])
    output = folder / "teacher-two"
    if not (output / "artefact").exists():
        spec = make_spec(
            folder / "bert", rows, output, task="classification", method="head",
            base_model__family="encoder", data__labels=LABELS[:2],
        )  # fmt: skip
        assert train(spec)[0] == 0
    return output / "artefact"


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (with_fewer_labels, "ft:teacher cannot teach this run: it does not know 'other'."),
    (lambda folder: folder / "bert", "it was not tuned here, and this run's task is 'classification'."),
    (
        lambda folder: tuned(folder, "teacher-numbers", task="regression"),
        "it was tuned for the task 'regression', and this run's task is 'classification'.",
    ),
    (lambda folder: folder / "nowhere", "config.json is missing"),
]


@pytest.mark.parametrize(("teacher", "why"), REFUSED)
def test_a_teacher_of_something_else_is_refused(
    folder: Path, tmp_path: Path, teacher: Callable[[Path], Path], why: str
) -> None:
    code, events = train(spec_of(folder, tmp_path / "out") | {"teacher": taught_by(teacher(folder))})
    assert code == 1
    assert events[-1]["code"] in ("incompatible_method", "model_not_found")
    assert why in events[-1]["message"]


def test_a_teacher_that_would_run_code_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    shutil.copytree(tuned(folder, "teacher-bert", method="full"), planted)
    (planted / "modeling.py").write_text("raise SystemExit")
    code, events = train(spec_of(folder, tmp_path / "out") | {"teacher": taught_by(planted)})
    assert code == 1
    assert "modeling.py is program code" in events[-1]["message"]


def test_what_writes_text_has_no_teacher(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, tmp_path / "out", "llama", task="classification")
    with pytest.raises(SpecError, match="task 'chat' learns from no teacher"):
        parse_spec(spec | {"task": "chat", "teacher": taught_by(folder / "llama", kind="decoder")})
