"""Rare classes and rare labels: drawn as often as the common ones, or weighed."""

import math
import signal
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from test_step import CPU, gradients, make_plain
from tiny import LABELS, class_rows, make_encoder, make_spec, task_rows, write_rows
from torch.nn import functional
from training import Forked, events_of, of_type, train

from fettle_trainer.checkpoint import CheckpointFolder
from fettle_trainer.collate import epoch_windows
from fettle_trainer.data import Tokeniser, TokenRows, load_dataset
from fettle_trainer.models import load_for_training
from fettle_trainer.sampling import balanced_draw
from fettle_trainer.spec import SpecError, parse_spec
from fettle_trainer.step import Stepper
from fettle_trainer.tasks import objective_of
from fettle_trainer.tasks.multilabel import balanced


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sampling")
    make_encoder(made / "bert")
    return made


def uneven_rows() -> list[dict[str, Any]]:
    """17 of billing, 4 of login, 2 of other."""
    by_label = {label: [row for row in class_rows(60) if row["label"] == label] for label in LABELS}
    return [row for label, count in zip(LABELS, (17, 4, 2), strict=True) for row in by_label[label][:count]]


def spec_of(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    rows = write_rows(output.parent / f"{output.name}.jsonl", uneven_rows())
    settings: dict[str, Any] = {
        "task": "classification", "method": "full", "base_model__family": "encoder", "data__labels": LABELS,
        "hyperparameters__max_length": 64, "hyperparameters__sampling": "balanced", **changes,
    }  # fmt: skip
    return make_spec(folder / "bert", rows, output, **settings)


def rows_of(classes: list[int]) -> TokenRows:
    ones, starts = torch.ones(len(classes), dtype=torch.int32), torch.arange(len(classes) + 1)
    empty = torch.zeros(0, dtype=torch.int32)
    return TokenRows(ones, starts, empty, torch.zeros_like(starts), torch.tensor(classes), starts[1:])


# A class that is not there (2), one with more rows than its share, one with fewer, and one of a single row.
CLASSES = [0] * 50 + [1] * 7 + [3]


def test_a_balanced_epoch_is_what_a_plain_count_asks_for() -> None:
    rows = rows_of(CLASSES)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        drawn = Counter(balanced_draw(rows, generator))
        assert sum(drawn.values()) == len(rows)
        seen = Counter(CLASSES[row] for row in drawn.elements())
        assert set(seen) == {0, 1, 3}
        assert max(seen.values()) - min(seen.values()) <= 1
        for label in seen:
            times = [drawn[row] for row, one in enumerate(CLASSES) if one == label]
            assert max(times) - min(times) <= 1


def test_over_many_epochs_no_row_and_no_place_is_preferred() -> None:
    rows = rows_of(CLASSES)
    generator = torch.Generator().manual_seed(4)
    epochs = [balanced_draw(rows, generator) for _ in range(600)]
    each = Counter(row for epoch in epochs for row in epoch)
    expected = len(CLASSES) / 3 / 50  # of the largest class, in one epoch
    assert all(abs(each[row] / 600 - expected) < 0.1 for row in range(50))
    first_third = Counter(CLASSES[row] for epoch in epochs for row in epoch[:19])
    assert all(abs(count / (600 * 19) - 1 / 3) < 0.03 for count in first_third.values())


def test_the_draw_follows_from_the_seed_alone() -> None:
    rows = rows_of(CLASSES)
    one, again, other = (
        epoch_windows(rows, 8, seed, by_length=False, draw=balanced_draw) for seed in (5, 5, 6)
    )
    assert one == again != other


def test_a_run_tells_how_often_rows_are_drawn(folder: Path, tmp_path: Path) -> None:
    code, events = train(spec_of(folder, tmp_path / "out"))
    assert code == 0, events[-1]
    [told] = [event for event in of_type(events, "log") if "draws" in event["message"]]
    # 23 rows, three classes: 8, 8 and 7 draws.
    assert 'Each epoch draws 23 rows, of every class as many: "other"' in told["message"]
    times = {int(name): count for name, count in told["data"]["rows_by_times"].items()}
    assert sum(times.values()) == 23
    assert sum(count * how_often for how_often, count in times.items()) == 23
    assert times[0] in (9, 10)
    shuffled = train(spec_of(folder, tmp_path / "plain", hyperparameters__sampling="shuffled"))[1]
    assert not [event for event in of_type(shuffled, "log") if "draws" in event["message"]]
    assert len(of_type(shuffled, "step")) == len(of_type(events, "step"))


def test_a_rare_class_is_learnt_where_it_was_drowned(folder: Path, tmp_path: Path) -> None:
    """38 rows of one class and 2 of the other, learnt for as many steps."""
    rows = [{"text": f"refund {n}", "label": "billing"} for n in range(38)]
    rows += [{"text": f"password {n}", "label": "login"} for n in range(2)]
    held = write_rows(
        tmp_path / "held.jsonl", [{"text": f"password {n}", "label": "login"} for n in range(5, 9)]
    )
    losses: dict[str, float] = {}
    for sampling in ("shuffled", "balanced"):
        path = write_rows(tmp_path / f"{sampling}.jsonl", rows)
        spec = make_spec(
            folder / "bert", path, tmp_path / f"out-{sampling}",
            task="classification", method="full", base_model__family="encoder",
            data__labels=["billing", "login"], data__validation_path=str(held),
            hyperparameters__learning_rate=1e-3, hyperparameters__num_train_epochs=3,
            hyperparameters__sampling=sampling,
        )  # fmt: skip
        code, events = train(spec)
        assert code == 0, events[-1]
        losses[sampling] = of_type(events, "evaluation")[-1]["valid_loss"]
    # By chance it would be the logarithm of 2.
    assert losses["balanced"] < math.log(2) < 0.9 < losses["shuffled"]


def test_a_killed_balanced_run_ends_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    every_step = {"runtime__checkpoint_steps": 1, "runtime__keep_checkpoints": 100}
    whole = spec_of(folder, tmp_path / "whole", **every_step)
    code, events = train(whole)
    assert code == 0, events[-1]
    cut = spec_of(folder, tmp_path / "cut", **every_step)
    process = Forked(cut)
    assert process.wait_until(lambda: len(of_type(events_of(cut), "step")) >= 4) is None
    process.kill(signal.SIGKILL)
    process.wait()
    code, events = train({**cut, "attempt": 2})
    assert code == 0, events[-1]
    last = of_type(events, "step")[-1]["step"]
    weights = [
        CheckpointFolder(tmp_path / name / "checkpoints", 100).load(last).weights for name in ("whole", "cut")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_rows_of_several_labels_are_not_drawn_by_class(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, tmp_path / "out", task="multilabel_classification")
    with pytest.raises(SpecError, match="sampling 'balanced' needs rows of one class each"):
        parse_spec(spec)


def multilabel(folder: Path, tmp_path: Path) -> tuple[TokenRows, Stepper]:
    path = write_rows(tmp_path / "labels.jsonl", task_rows("multilabel_classification", 14, seed=1))
    spec = parse_spec(
        make_spec(
            folder / "bert",
            path,
            tmp_path / "out",
            task="multilabel_classification",
            method="full",
            base_model__family="encoder",
            data__labels=LABELS,
            hyperparameters__max_length=64,
            hyperparameters__dropout=0.0,
            hyperparameters__class_weights="balanced",
        )
    )
    loaded = load_for_training(spec, CPU)
    loaded.set_training()
    tokeniser = Tokeniser(loaded.prompts, spec.task, loaded.max_length, spec.data.labels)
    rows = load_dataset(path, tokeniser, cache=tmp_path / "cache", tokenizer_sha256="bert").rows
    objective = objective_of(spec.task).tuned(spec.hyperparameters, rows)
    return rows, Stepper(loaded, spec.task, objective=objective)


def test_weighted_labels_are_torchs_over_the_whole_step(folder: Path, tmp_path: Path) -> None:
    rows, stepper = multilabel(folder, tmp_path)
    marks = torch.stack([rows.aux_of(row)[: len(LABELS)] for row in range(len(rows))])
    expected = (marks == 0).sum(0) / (marks == 1).sum(0)
    assert balanced(rows) == pytest.approx(expected.tolist())
    assert stepper.objective.weights == pytest.approx(expected.tolist())
    assert len(set(expected.tolist())) > 1
    actual = gradients(stepper, rows, [[0, 5, 7], [1, 2], [6, 3, 4]])
    make_plain(stepper.loaded)
    stepper.loaded.model.zero_grad(set_to_none=True)
    batch = stepper.collate(rows, range(8))
    logits = stepper.loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    loss = functional.binary_cross_entropy_with_logits(logits, batch.targets_N, pos_weight=expected)
    cast("Any", loss).backward()
    named = stepper.loaded.trainable().items()
    for name, parameter in named:
        torch.testing.assert_close(actual[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_weights_of_labels_are_bounded() -> None:
    count = 300
    marks = torch.zeros(count, 4, dtype=torch.int32)
    marks[0, 0], marks[:, 1], marks[: count // 4, 3] = 1, 1, 1
    starts = torch.arange(count + 1)
    rows = TokenRows(
        torch.ones(count, dtype=torch.int32), starts, marks.flatten(), starts * 4,
        torch.full((count,), 4), starts[1:],
    )  # fmt: skip
    assert balanced(rows) == pytest.approx([100.0, 0.01, 1.0, 3.0])


def test_weights_of_labels_are_told(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "labels.jsonl", task_rows("multilabel_classification", 16, seed=1))
    spec = make_spec(
        folder / "bert", path, tmp_path / "out",
        task="multilabel_classification", method="head", base_model__family="encoder", data__labels=LABELS,
        hyperparameters__max_length=64, hyperparameters__class_weights="balanced",
    )  # fmt: skip
    code, events = train(spec)
    assert code == 0, events[-1]
    [told] = [event for event in of_type(events, "log") if event["message"].startswith("Weights: ")]
    assert set(told["data"]["weights"]) == set(LABELS)
    assert all(f'"{label}"' in told["message"] for label in LABELS)
