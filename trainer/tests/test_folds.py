"""Folds of a cross-validation: each file of rows is tokenised once, whichever run holds it out."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import chat_rows, make_decoder, make_spec, make_tokenizer, write_rows
from training import of_type, train

from fettle_trainer import data
from fettle_trainer import train as training
from fettle_trainer.data import Dataset, Tokeniser, load_dataset
from fettle_trainer.prompt import PromptEncoder
from fettle_trainer.run_rows import RunRows, load_rows
from fettle_trainer.spec import parse_spec


def folds(folder: Path, rows: list[dict[str, Any]], count: int) -> list[Path]:
    numbered = [{"line": line, **row} for line, row in enumerate(rows, 1)]
    return [write_rows(folder / f"fold-{n}.jsonl", numbered[n::count]) for n in range(count)]


def fold_spec(folder: Path, files: list[Path], held: int) -> dict[str, Any]:
    if not (folder / "model").exists():
        make_decoder(folder / "model")
    first, *more = [path for number, path in enumerate(files) if number != held]
    validation = folder / f"out-{held}" / "validation.jsonl"
    validation.parent.mkdir(parents=True, exist_ok=True)
    validation.write_bytes(files[held].read_bytes())
    spec = make_spec(folder / "model", first, validation.parent, data__validation_path=str(validation))
    content = b"".join(path.read_bytes() for path in (first, *more))
    spec["data"]["train_sha256"] = hashlib.sha256(content).hexdigest()
    spec["data"]["more_train_paths"] = [str(path) for path in more]
    spec["runtime"]["cache_dir"] = str(folder / "tokens")
    return spec


def test_the_second_fold_tokenises_nothing_and_trains_on_exactly_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = folds(tmp_path, chat_rows(30), 3)
    seen: list[RunRows] = []
    tokenised: list[str] = []
    tokenise = data._tokenise  # pyright: ignore[reportPrivateUsage]

    def watched(*given: Any) -> tuple[RunRows, Dataset]:
        found = load_rows(*given)
        seen.append(found[0])
        return found

    def counted(path: Path, *rest: Any) -> Dataset:
        tokenised.append(path.name)
        return tokenise(path, *rest)

    monkeypatch.setattr(training, "load_rows", watched)
    monkeypatch.setattr(data, "_tokenise", counted)
    told: list[dict[str, Any]] = []
    for held in range(3):
        code, events = train(fold_spec(tmp_path, files, held))
        assert code == 0, of_type(events, "failed")
        told += of_type(events, "data")
    assert tokenised == ["fold-1.jsonl", "fold-2.jsonl", "validation.jsonl"]
    assert len(list((tmp_path / "tokens").glob("*.safetensors"))) == 3
    every = set(range(1, 31))
    for held, rows in enumerate(seen):
        held_out = set(range(held + 1, 31, 3))
        assert sorted(rows.validation.lines.tolist()) == sorted(held_out)
        assert sorted(rows.train.lines.tolist()) == sorted(every - held_out)
        assert len(rows.train) == 20
    assert [(one["num_train_rows"], one["num_validation_rows"]) for one in told] == [(20, 10)] * 3


def test_files_joined_are_the_rows_of_the_whole_file_in_their_order(tmp_path: Path) -> None:
    tokeniser = Tokeniser(PromptEncoder(make_tokenizer()), "chat", 64)
    rows = [*chat_rows(12), {"messages": []}, {"text": "of another task"}]

    def load(path: Path) -> Dataset:
        return load_dataset(path, tokeniser, cache=tmp_path / "cache", tokenizer_sha256="t")

    whole = load(write_rows(tmp_path / "whole.jsonl", rows))
    numbered = [{"line": line, **row} for line, row in enumerate(rows, 1)]
    cuts = [numbered[:5], numbered[5:13], numbered[13:]]
    joined = Dataset.joined(
        [load(write_rows(tmp_path / f"{number}.jsonl", part)) for number, part in enumerate(cuts)]
    )
    for name, tensor in whole.rows.tensors().items():
        assert torch.equal(joined.rows.tensors()[name], tensor), name
    assert joined.rows.lengths == whole.rows.lengths
    assert (joined.refused, joined.num_refused, joined.num_truncated) == (
        whole.refused,
        2,
        whole.num_truncated,
    )


def test_a_row_changed_in_any_of_the_files_is_seen(tmp_path: Path) -> None:
    files = folds(tmp_path, chat_rows(12), 3)
    spec = fold_spec(tmp_path, files, 0)
    files[2].write_text(files[2].read_text().replace("lazy", "busy"))
    code, events = train(spec)
    assert code == 1
    assert of_type(events, "failed")[0]["code"] == "file_not_usable"


def test_a_spec_without_further_files_is_as_before(tmp_path: Path) -> None:
    spec = fold_spec(tmp_path, folds(tmp_path, chat_rows(6), 2), 0)
    assert parse_spec(spec).data.train_paths == (tmp_path / "fold-1.jsonl",)
    del spec["data"]["more_train_paths"]
    assert parse_spec(spec).data.train_paths == (tmp_path / "fold-1.jsonl",)
