"""What Optuna answers: the same to the same question, better than luck, within what is searched."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fettle_trainer import tune
from fettle_trainer.tune import Dimension, Past, Question, Value, importance, suggest

RATE = Dimension("learning_rate", None, 1e-5, 1e-1, log=True)
RANK = Dimension("lora_r", (4, 8, 16, 32))
SCHEDULE = Dimension("lr_scheduler_type", ("linear", "cosine"))
SPACE = (RATE, RANK, SCHEDULE)


def loss(values: dict[str, Value]) -> float:
    """Least at a learning rate of 0.01; the rank matters little, the schedule not at all."""
    rate, rank = float(values["learning_rate"] or 0), float(values["lora_r"] or 0)
    return abs(math.log10(rate) + 2) + 0.01 * math.log2(rank)


def question(trials: list[Past], seed: int = 1) -> Question:
    return Question(SPACE, "minimize", seed, tuple(trials))


def past(values: dict[str, Value], state: str = "succeeded", score: float | None = None) -> Past:
    known = loss(values) if score is None and state == "succeeded" else score
    return Past(values, state, known, [(1.0, 2.0)])


def search(num_trials: int) -> list[Past]:
    trials: list[Past] = []
    for number in range(num_trials):
        trials.append(past(suggest(question(trials, 100 + number))))
    return trials


def test_same_history_and_seed_give_the_same_answer_another_seed_another() -> None:
    trials = search(9)
    assert suggest(question(trials, 5)) == suggest(question(trials, 5))
    assert suggest(question(trials, 5)) != suggest(question(trials, 6))


def test_it_looks_where_it_was_good() -> None:
    trials = search(30)
    later = [loss(dict(one.values)) for one in trials[15:]]
    first = [loss(dict(one.values)) for one in trials[:6]]
    assert sorted(later)[len(later) // 2] < sorted(first)[len(first) // 2]
    assert min(later) < 0.35


def test_values_are_of_the_space_and_have_its_types() -> None:
    space = (
        *SPACE,
        Dimension("lora_alpha", None, 1, 64, log=True, whole=True),
        Dimension("dropout", (None, 0.1)),
    )
    for seed in range(8):
        found = suggest(Question(space, "maximize", seed, ()))
        rate, alpha = found["learning_rate"], found["lora_alpha"]
        assert isinstance(rate, float)
        assert 1e-5 <= rate <= 1e-1
        assert isinstance(alpha, int)
        assert 1 <= alpha <= 64
        assert found["lora_r"] in (4, 8, 16, 32)
        assert found["lr_scheduler_type"] in ("linear", "cosine")
        assert found["dropout"] in (None, 0.1)
        json.dumps(found, allow_nan=False)


def test_what_lies_outside_failed_runs_or_is_pruned_is_no_obstacle() -> None:
    trials = search(7)
    outside: dict[str, Value] = {"learning_rate": 5.0, "lora_r": 4, "lr_scheduler_type": "linear"}
    inside = dict(trials[0].values)
    others = [past(outside), past(inside, "failed"), past(inside, "pruned"), past(inside, "running")]
    found = suggest(question([*trials, *others]))
    assert set(found) == {"learning_rate", "lora_r", "lr_scheduler_type"}
    # A trial at work is not suggested once more.
    assert found["learning_rate"] != inside["learning_rate"]


def test_importance_names_what_mattered() -> None:
    shares = importance(question(search(30)))
    assert next(iter(shares)) == "learning_rate"
    assert shares["learning_rate"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_importance_of_trials_that_scored_alike_is_nobodys() -> None:
    assert importance(question([past(dict(one.values), score=1.0) for one in search(5)])) == {}


def asked(trials: list[Past]) -> str:
    return json.dumps(
        {
            "dimensions": [
                {"name": "learning_rate", "min": 1e-5, "max": 1e-1, "log": True, "whole": False},
                {"name": "lora_r", "values": [4, 8, 16, 32]},
                {"name": "lr_scheduler_type", "values": ["linear", "cosine"]},
            ],
            "direction": "minimize",
            "seed": 5,
            "trials": [
                {"values": one.values, "state": one.state, "score": one.score, "points": [[1, 2]]}
                for one in trials
            ],
        }
    )


def test_a_process_of_its_own_answers_the_same_without_loading_torch(capsys: Any, monkeypatch: Any) -> None:
    trials = search(8)
    text = asked(trials)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert tune.tune_command("suggest") == 0
    here = json.loads(capsys.readouterr().out)
    assert here == suggest(question(trials, 5))
    code = (
        "import sys; from fettle_trainer.__main__ import main; code = main(['tune', 'suggest']);"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'sqlalchemy', 'alembic')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(tune.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], input=text, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here
