"""What a tuned model has to beat, and the measures for both.

``python -m fettle_trainer.baselines classification TRAIN TEST``: the majority label and TF-IDF + logistic
regression, trained on the rows of TRAIN and measured on the rows of TEST (JSON lines with ``text`` and
``label``). ``… score FILE``: measures predictions, JSON lines with ``wanted`` and ``got``, as classification
or, with ``--as translation``, by chrF and BLEU. One JSON document on stdout.
"""

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from fettle_trainer.baselines_metrics import classification_metrics, translation_metrics


def read_rows(path: Path, keys: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a JSON lines file. Raises ValueError that names the line without one of ``keys``."""
    rows: list[dict[str, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = cast(dict[str, str], json.loads(line))
        missing = [key for key in keys if not isinstance(cast(Any, row.get(key)), str)]
        if missing:
            raise ValueError(f"{path}:{number}: {missing[0]!r} is missing or no text.")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def majority(train_labels: Sequence[str], num_rows: int) -> list[str]:
    """The most frequent label (of equals the first in the alphabet), ``num_rows`` times."""
    counts = Counter(train_labels)
    most = min(counts, key=lambda label: (-counts[label], label))
    return [most] * num_rows


def tfidf_logistic(train: Sequence[dict[str, str]], texts: Sequence[str]) -> list[str]:
    """Labels by logistic regression over TF-IDF of words and word pairs; scikit-learn, default strength."""
    # scikit-learn ships no types
    text: Any = importlib.import_module("sklearn.feature_extraction.text")
    linear: Any = importlib.import_module("sklearn.linear_model")
    pipeline: Any = importlib.import_module("sklearn.pipeline")
    vectorizer = text.TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=50_000)
    # class_weight: labels are seldom even, and the tuned model's loss must not meet a lopsided rival
    model = pipeline.make_pipeline(
        vectorizer, linear.LogisticRegression(max_iter=1000, class_weight="balanced", C=10)
    )
    model.fit([row["text"] for row in train], [row["label"] for row in train])
    return [str(label) for label in model.predict(list(texts))]


def classification_baselines(train_path: Path, test_path: Path) -> dict[str, Any]:
    """Both baselines on the same split: ``{"labels", "majority", "tfidf_logistic"}``."""
    train, test = read_rows(train_path, ["text", "label"]), read_rows(test_path, ["text", "label"])
    wanted = [row["label"] for row in test]
    labels = sorted({row["label"] for row in train} | set(wanted))
    guesses = majority([row["label"] for row in train], len(test))
    learned = tfidf_logistic(train, [row["text"] for row in test])
    return {
        "labels": labels,
        "majority": classification_metrics(wanted, guesses, labels).to_json(),
        "tfidf_logistic": classification_metrics(wanted, learned, labels).to_json(),
    }


def score(path: Path, kind: str) -> dict[str, Any]:
    """Measures the predictions of a file."""
    rows = read_rows(path, ["wanted", "got"])
    wanted, got = [row["wanted"] for row in rows], [row["got"] for row in rows]
    if kind == "translation":
        return translation_metrics(wanted, got)
    return classification_metrics(wanted, got, sorted(set(wanted))).to_json()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Exit code 0, or 2 with the reason on stderr when a file cannot be used."""
    parser = argparse.ArgumentParser(
        prog="fettle_trainer baselines", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    both = commands.add_parser("classification", help="train the baselines and measure them")
    both.add_argument("train", type=Path)
    both.add_argument("test", type=Path)
    one = commands.add_parser("score", help="measure predictions")
    one.add_argument("file", type=Path)
    one.add_argument("--as", dest="kind", choices=["classification", "translation"], default="classification")
    options = parser.parse_args(argv)
    try:
        if options.command == "classification":
            answer = classification_baselines(options.train, options.test)
        else:
            answer = score(options.file, options.kind)
    except (OSError, ValueError) as error:
        print(f"baselines: {error}", file=sys.stderr)
        return 2
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
