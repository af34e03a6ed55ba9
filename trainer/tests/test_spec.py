"""The spec reader: the contract's schema, and messages that name path and nearest key."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import LABELS, make_spec

from fettle_trainer.spec import SpecError, json_schema, parse_spec, read_spec

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "train-spec.json"


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    return make_spec(tmp_path / "model", rows, tmp_path / "out")


def canonical(schema: dict[str, Any]) -> Any:
    """A schema without words, order, and two ways to say the same."""
    if "anyOf" in schema:
        return {"anyOf": sorted((canonical(one) for one in schema["anyOf"]), key=json.dumps)}
    if "const" in schema:
        return {"enum": [schema["const"]]}
    if "enum" in schema:
        return {"enum": sorted(schema["enum"])}
    if schema["type"] == "object":
        return {
            "properties": {name: canonical(one) for name, one in sorted(schema["properties"].items())},
            "required": sorted(schema["required"]),
            "closed": schema["additionalProperties"] is False,
        }
    if schema["type"] == "array":
        return {
            "items": canonical(schema["items"]),
            "min": schema.get("minItems", 0),
            "max": schema["maxItems"],
        }
    if schema["type"] == "string":
        return {"string": [schema.get("minLength", 0), schema["maxLength"]]}
    bounds = ("minimum", "exclusiveMinimum", "maximum")
    return {"type": schema["type"], **{name: schema[name] for name in bounds if name in schema}}


def test_agrees_with_the_contract() -> None:
    published = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert canonical(json_schema()) == canonical(published)


def test_reads_a_spec(spec: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    read = read_spec(path)
    assert read.hyperparameters.target_modules == "all-linear"
    assert read.hyperparameters.lora_alpha == 8.0
    assert read.data.labels is None


WRONG: list[tuple[str, Any, str]] = [
    (
        "hyperparameters__learning_rate",
        2,
        r"spec.hyperparameters.learning_rate is 2: expected above 0 to 0.1.",
    ),
    ("hyperparameters__learning_rate", 0, r"expected above 0 to 0.1"),
    ("hyperparameters__learning_rate", float("nan"), r"must be a number"),
    ("hyperparameters__num_train_epochs", 1.5, r"num_train_epochs is 1.5: expected a whole number."),
    ("hyperparameters__num_train_epochs", True, r"must be a number, not true or false"),
    ("hyperparameters__lr_scheduler_type", "cosin", r"expected one of .*Did you mean 'cosine'\?"),
    ("hyperparameters__target_modules", "all", r"expected one of 'all-linear'"),
    ("hyperparameters__target_modules", [], r"has 0 entries: expected 1 to 64"),
    ("hyperparameters__target_modules", ["q_proj", 3], r"target_modules\[1\] must be text"),
    ("version", 2, r"spec.version is 2: expected one of 1"),
    ("data__train_sha256", "abc", r"train_sha256 has 3 characters: expected 64 to 64"),
    ("task", "seq2seq", r"cannot train a model of family 'decoder': choose a model of family seq2seq"),
    ("task", "classification", r"labels: classification needs at least 2 class names"),
    ("method", "head", r"has none: use method 'lora' or 'full'"),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_refuses(spec: dict[str, Any], wrong: tuple[str, Any, str]) -> None:
    place, value, message = wrong
    target = spec
    *parents, leaf = place.split("__")
    for parent in parents:
        target = target[parent]
    target[leaf] = value
    with pytest.raises(SpecError, match=message):
        parse_spec(spec)


def test_unknown_and_missing_keys_are_named(spec: dict[str, Any]) -> None:
    renamed = {**spec, "hyperparameters": {**spec["hyperparameters"], "learning_rte": 1}}
    with pytest.raises(
        SpecError, match=r"spec.hyperparameters.learning_rte is not known: did you mean 'learning_rate'"
    ):
        parse_spec(renamed)
    del spec["data"]["labels"]
    with pytest.raises(SpecError, match=r"spec.data.labels is missing"):
        parse_spec(spec)
    with pytest.raises(SpecError, match="must be an object, not a list"):
        parse_spec([])


def test_unreadable_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(SpecError, match="is not JSON"):
        read_spec(broken)
    with pytest.raises(SpecError, match="Cannot read the spec"):
        read_spec(tmp_path / "absent.json")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000)
    with pytest.raises(SpecError, match="is not JSON"):
        read_spec(deep)


def test_combinations_that_work(spec: dict[str, Any]) -> None:
    spec.update(task="classification", method="head")
    spec["data"]["labels"] = LABELS
    assert parse_spec(spec).data.labels == tuple(LABELS)
