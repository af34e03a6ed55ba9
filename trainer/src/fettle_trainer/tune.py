"""Where a sweep looks next, and which hyperparameters mattered: Optuna, asked anew about all that is known.

Nothing is kept: the same question has the same answer, however often the server was killed between.
One JSON object comes on stdin, one goes to stdout.
"""

import importlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

# Trials that are drawn at random before the estimator has enough to look at.
_STARTUP_TRIALS = 6

Value = float | str | None


@dataclass(frozen=True, slots=True)
class Dimension:
    """`values` in order, or a range without an end of values. `whole`: of whole numbers."""

    name: str
    values: tuple[Value, ...] | None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def ordered(self) -> bool:
        """Numbers have neighbours: what is known of 8 says something of 16."""
        numbers = [one for one in self.values or () if isinstance(one, int | float)]
        return len(numbers) == len(self.values or ()) and numbers == sorted(numbers)

    def distribution(self, optuna: Any) -> Any:
        kinds = optuna.distributions
        if self.values is None:
            if self.whole:
                return kinds.IntDistribution(int(self.low), int(self.high), log=self.log)
            return kinds.FloatDistribution(self.low, self.high, log=self.log)
        if self.ordered:
            return kinds.IntDistribution(0, len(self.values) - 1)
        return kinds.CategoricalDistribution(range(len(self.values)))

    def inner(self, value: Value) -> float | int | None:
        """As Optuna has it: of listed values their place. None: outside of this dimension."""
        if self.values is not None:
            return self.values.index(value) if value in self.values else None
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        return value

    def outer(self, inner: float) -> Value:
        return inner if self.values is None else self.values[int(inner)]


@dataclass(frozen=True, slots=True)
class Past:
    """A trial so far. `score` None: it is still at work, or gave none. `points`: epochs and score."""

    values: Mapping[str, Value]
    state: str
    score: float | None
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Question:
    dimensions: tuple[Dimension, ...]
    direction: str
    seed: int
    trials: tuple[Past, ...]


def read_question(text: str) -> Question:
    """Raises ValueError, KeyError or TypeError: the server writes it, so a wrong one is a fault of ours."""
    told: dict[str, Any] = json.loads(text)
    return Question(
        dimensions=tuple(_dimension(one) for one in told["dimensions"]),
        direction=told["direction"],
        seed=told["seed"],
        trials=tuple(
            Past(one["values"], one["state"], one["score"], [(e, v) for e, v in one["points"]])
            for one in told["trials"]
        ),
    )


def _dimension(told: dict[str, Any]) -> Dimension:
    if "values" in told:
        return Dimension(told["name"], tuple(told["values"]))
    return Dimension(told["name"], None, told["min"], told["max"], told["log"], told["whole"])


def suggest(question: Question) -> dict[str, Value]:
    """One configuration, by a tree-structured Parzen estimator over all dimensions together."""
    optuna = _optuna()
    study = _study(optuna, question)
    inner = study.ask(_distributions(optuna, question)).params
    return {one.name: one.outer(inner[one.name]) for one in question.dimensions}


def importance(question: Question) -> dict[str, float]:
    """Shares of one, the largest first: PED-ANOVA, of how far a dimension tells good trials from the others.
    Empty when all scored alike."""
    if len({one.score for one in question.trials if one.state == "succeeded"}) < 2:
        return {}
    optuna = _optuna()
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(_study(optuna, question), evaluator=evaluator)
    return {str(name): float(share) for name, share in found.items()}


def _optuna() -> Any:
    # By name: it has no types worth the name, and nothing else may come to depend on it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna = cast("Any", importlib.import_module("optuna"))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _distributions(optuna: Any, question: Question) -> dict[str, Any]:
    return {one.name: one.distribution(optuna) for one in question.dimensions}


def _study(optuna: Any, question: Question) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(
            seed=question.seed, multivariate=True, n_startup_trials=_STARTUP_TRIALS, constant_liar=True
        )
        study = optuna.create_study(direction=question.direction, sampler=sampler)
        for past in question.trials:
            trial = _trial(optuna, question, past)
            if trial is not None:
                study.add_trial(trial)
    return study


def _trial(optuna: Any, question: Question, past: Past) -> Any:
    """None: its values lie outside what is searched, as the automatic ones may."""
    inner = {one.name: one.inner(past.values.get(one.name)) for one in question.dimensions}
    if None in inner.values():
        return None
    states = optuna.trial.TrialState
    state = {"succeeded": states.COMPLETE, "pruned": states.PRUNED, "running": states.RUNNING}.get(
        past.state, states.FAIL
    )
    return optuna.trial.create_trial(
        params=inner,
        distributions=_distributions(optuna, question),
        state=state,
        value=past.score if state == states.COMPLETE else None,
        intermediate_values={step: value for step, (_, value) in enumerate(past.points)},
    )


def tune_command(what: str) -> int:
    question = read_question(sys.stdin.read())
    print(json.dumps(suggest(question) if what == "suggest" else importance(question), allow_nan=False))
    return 0
