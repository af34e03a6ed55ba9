"""Baselines and measures against numbers worked out by hand."""

import json
from pathlib import Path

import pytest

from fettle_trainer import baselines
from fettle_trainer.baselines import majority, tfidf_logistic
from fettle_trainer.baselines_metrics import (
    classification_metrics,
    macro_f1,
    translation_metrics,
    wilson_interval,
)


def test_accuracy_f1_and_confusion_by_hand() -> None:
    wanted = ["ham", "ham", "ham", "spam", "spam", "spam"]
    got = ["ham", "ham", "spam", "spam", "ham", "none of these"]
    metrics = classification_metrics(wanted, got, ["ham", "spam"])
    assert metrics.accuracy == 3 / 6
    # ham: TP 2, FP 1, FN 1 -> 4/6; spam: TP 1, FP 1, FN 2 -> 2/5
    assert metrics.macro_f1 == pytest.approx((4 / 6 + 2 / 5) / 2)
    assert metrics.confusion == [[2, 1], [1, 1]]
    assert metrics.num_unknown == 1
    low, high = metrics.macro_f1_interval
    assert 0 <= low <= metrics.macro_f1 <= high <= 1


def test_wilson_interval_by_hand() -> None:
    # 8 of 10: the textbook interval is 0.4902 to 0.9433
    low, high = wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_macro_f1_leaves_out_a_label_seen_nowhere() -> None:
    assert macro_f1(["a", "a"], ["a", "a"], ["a", "b"]) == 1.0


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels and 1 predictions"):
        classification_metrics(["a", "a"], ["a"], ["a"])


def test_majority_is_the_most_frequent_label_and_the_first_of_equals() -> None:
    assert majority(["b", "a", "b"], 2) == ["b", "b"]
    assert majority(["b", "a"], 1) == ["a"]


def test_tfidf_separates_what_words_separate() -> None:
    train = [{"text": f"cheap pills number {n} buy now", "label": "spam"} for n in range(8)]
    train += [{"text": f"the patch number {n} fixes the build", "label": "ham"} for n in range(8)]
    assert tfidf_logistic(train, ["buy cheap pills", "this fixes the build"]) == ["spam", "ham"]


def test_translation_scores() -> None:
    same = translation_metrics(["Der Typ fehlt."] * 3, ["Der Typ fehlt."] * 3)
    assert same["chrf"] == pytest.approx(100)
    assert same["bleu"] == pytest.approx(100)
    assert same["exact"] == 1.0
    other = translation_metrics(["Der Typ fehlt."] * 3, ["0123"] * 3)
    assert other["chrf"] == pytest.approx(0)
    assert other["exact"] == 0.0


def test_command_line_measures_both_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"buy pills {n}", "label": "spam"} for n in range(3)]
    rows += [{"text": f"build fixed {n}", "label": "ham"} for n in range(5)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert (
        baselines.main(["classification", str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")]) == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["labels"] == ["ham", "spam"]
    assert answer["majority"]["accuracy"] == 5 / 8
    assert answer["majority"]["macro_f1"] == pytest.approx((10 / 13 + 0) / 2)
    assert answer["tfidf_logistic"]["accuracy"] == 1.0


def test_a_row_without_a_label_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "b"}\n')
    assert baselines.main(["classification", str(path), str(path)]) == 2
    assert f"{path}:2: 'label' is missing or no text." in capsys.readouterr().err
