"""Measures of predictions, with 95 % intervals. Pure: labels and numbers in, numbers out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Interval = tuple[float, float]
Z95 = 1.959963984540054


@dataclass(frozen=True)
class ClassificationMetrics:
    """``confusion[i][j]``: rows whose label is ``labels[i]`` and that were called ``labels[j]``.

    A prediction that is none of the labels counts as wrong and stands in ``num_unknown`` alone.
    """

    labels: list[str]
    num_rows: int
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval
    confusion: list[list[int]]
    num_unknown: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def wilson_interval(num_right: int, num_rows: int) -> Interval:
    """Wilson's score interval for a share (E. B. Wilson, 1927), 95 %."""
    if num_rows == 0:
        return (0.0, 1.0)
    share = num_right / num_rows
    spread = Z95 * math.sqrt(share * (1 - share) / num_rows + Z95**2 / (4 * num_rows**2))
    centre = share + Z95**2 / (2 * num_rows)
    scale = 1 + Z95**2 / num_rows
    return (max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def macro_f1(wanted: Sequence[str], got: Sequence[str], labels: Sequence[str]) -> float:
    """Mean over the labels that occur of F1 = 2 TP / (2 TP + FP + FN). A label seen nowhere is left out."""
    scores: list[float] = []
    for label in labels:
        pairs = list(zip(wanted, got, strict=True))
        right = sum(w == label and g == label for w, g in pairs)
        wrong = sum((w == label) != (g == label) for w, g in pairs)
        if right + wrong > 0:
            scores.append(2 * right / (2 * right + wrong))
    return sum(scores) / len(scores) if scores else 0.0


def bootstrap_interval(num_rows: int, measure: Callable[[list[int]], float], seed: int = 0) -> Interval:
    """95 % percentile interval of ``measure`` over 500 resamplings of the row numbers."""
    if num_rows == 0:
        return (0.0, 1.0)
    draws = np.random.default_rng(seed).integers(0, num_rows, size=(500, num_rows))
    values = [measure([int(row) for row in draw]) for draw in draws]
    low, high = np.quantile(values, [0.025, 0.975])
    return (float(low), float(high))


def classification_metrics(
    wanted: Sequence[str], got: Sequence[str], labels: Sequence[str]
) -> ClassificationMetrics:
    """All measures of one list of predictions. Raises ValueError when the lists differ in length."""
    if len(wanted) != len(got):
        raise ValueError(f"There are {len(wanted)} labels and {len(got)} predictions: expected as many.")
    place = {label: index for index, label in enumerate(labels)}
    confusion = [[0] * len(labels) for _ in labels]
    unknown = 0
    for want, have in zip(wanted, got, strict=True):
        if have in place:
            confusion[place[want]][place[have]] += 1
        else:
            unknown += 1
    right = sum(want == have for want, have in zip(wanted, got, strict=True))

    def resampled_f1(rows: list[int]) -> float:
        return macro_f1([wanted[row] for row in rows], [got[row] for row in rows], labels)

    return ClassificationMetrics(
        labels=list(labels),
        num_rows=len(wanted),
        accuracy=right / len(wanted) if wanted else 0.0,
        accuracy_interval=wilson_interval(right, len(wanted)),
        macro_f1=macro_f1(wanted, got, labels),
        macro_f1_interval=bootstrap_interval(len(wanted), resampled_f1),
        confusion=confusion,
        num_unknown=unknown,
    )


def translation_metrics(wanted: Sequence[str], got: Sequence[str]) -> dict[str, Any]:
    """Corpus chrF and BLEU by sacrebleu, 0 to 100, with bootstrapped intervals; exact matches as a share."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if len(wanted) != len(got):
        raise ValueError(f"There are {len(wanted)} references and {len(got)} translations: expected as many.")

    def corpus(metric: Any, rows: Sequence[int]) -> float:
        return float(metric.corpus_score([got[row] for row in rows], [[wanted[row] for row in rows]]).score)

    everything = list(range(len(wanted)))
    exact = sum(want == have for want, have in zip(wanted, got, strict=True))
    chrf, bleu = CHRF(), BLEU(effective_order=True)
    return {
        "num_rows": len(wanted),
        "chrf": corpus(chrf, everything),
        "chrf_interval": bootstrap_interval(len(wanted), lambda rows: corpus(chrf, rows)),
        "bleu": corpus(bleu, everything),
        "bleu_interval": bootstrap_interval(len(wanted), lambda rows: corpus(bleu, rows)),
        "exact": exact / len(wanted) if wanted else 0.0,
        "exact_interval": wilson_interval(exact, len(wanted)),
    }
