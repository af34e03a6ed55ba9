"""Rows to tokens: refusals with line and reason, cuts that are counted, the cache."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LABELS, chat_rows, make_tokenizer, make_wordpiece, write_rows

from fettle_trainer import data
from fettle_trainer.data import Dataset, Tokeniser, load_dataset
from fettle_trainer.failure import TrainFailure
from fettle_trainer.prompt import PromptEncoder
from fettle_trainer.token_cache import TokenCache


def load(folder: Path, rows: list[dict[str, Any]], tokeniser: Tokeniser) -> Dataset:
    path = write_rows(folder / "rows.jsonl", rows)
    return load_dataset(path, tokeniser, cache=folder / "cache", tokenizer_sha256="t")


def chat(max_length: int = 64) -> Tokeniser:
    return Tokeniser(PromptEncoder(make_tokenizer()), "chat", max_length)


def classes(max_length: int = 64) -> Tokeniser:
    return Tokeniser(PromptEncoder(make_wordpiece()), "classification", max_length, tuple(LABELS))


def turn(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_every_unusable_row_is_told_with_line_and_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": turn("login", "the fox")},
        {"messages": turn("login " * 200, "the fox")},
        {"messages": [{**message, "weight": 0} for message in turn("login", "the fox")]},
        {"messages": turn("login", "")},
        {"messages": [{"role": "user", "content": "alone"}]},
        {"messages": []},
        {"text": "of another task", "label": "x"},
        {"prompt": "a", "completion": ""},
    ]
    dataset = load(tmp_path, rows, chat())
    told = [(one.line, one.rule) for one in dataset.refused]
    assert told == [
        (2, "too_long"),
        (3, "no_answer"),
        (4, "no_answer"),
        (5, "no_answer"),
        (6, "no_messages"),
        (7, "row_kind"),
        (8, "no_answer"),
    ]
    assert dataset.num_refused == 7
    assert len(dataset.rows) == 1
    assert "more than max_length 64. Shorten the row or raise max_length." in dataset.refused[0].message


def test_long_conversation_ends_after_its_last_whole_answer(tmp_path: Path) -> None:
    tokeniser = chat(max_length=64)
    dataset = load(tmp_path, [{"messages": turn("login", "the fox") * 6}], tokeniser)
    assert dataset.num_truncated == 1
    ids, learn = dataset.rows.ids_of(0), dataset.rows.aux_of(0)
    assert len(ids) <= 64
    answers = tokeniser.prompts.raw.decode(ids[learn.bool()].tolist())
    assert answers == "the fox<|im_end|>" * answers.count("the fox")
    assert answers.count("the fox") >= 2


def test_long_texts_are_cut_with_their_closing_token_and_counted(tmp_path: Path) -> None:
    rows = [{"text": "fox " * 100, "label": "other"}, {"text": "fox", "label": "other"}]
    dataset = load(tmp_path, rows, classes(max_length=16))
    assert dataset.num_truncated == 1
    assert dataset.rows.lengths == [16, 3]
    assert dataset.rows.ids_of(0)[-1] == 3
    assert dataset.rows.labels.tolist() == [2, 2]


def test_unknown_label_and_empty_text(tmp_path: Path) -> None:
    dataset = load(
        tmp_path, [{"text": "fox", "label": "animal"}, {"text": "fox", "label": "other"}], classes()
    )
    assert [(one.line, one.rule) for one in dataset.refused] == [(1, "unknown_label")]
    assert "'animal' is none of the run's 3 labels" in dataset.refused[0].message


def test_pairs_of_texts_carry_types(tmp_path: Path) -> None:
    dataset = load(tmp_path, [{"text": "fox", "text_pair": "dog", "label": "other"}], classes())
    assert dataset.rows.aux_of(0).tolist() == [0, 0, 0, 1, 1]


def test_seq2seq_target_ends_with_eos_and_is_never_cut(tmp_path: Path) -> None:
    tokeniser = Tokeniser(PromptEncoder(make_tokenizer(None, adds_eos=True)), "seq2seq", 12)
    rows = [
        {"prompt": "the fox", "completion": "the dog"},
        {"prompt": "fox " * 50, "completion": "the dog"},
        {"prompt": "fox", "completion": "dog " * 50},
        {"prompt": "fox", "completion": " "},
    ]
    dataset = load(tmp_path, rows, tokeniser)
    assert dataset.num_truncated == 1
    assert [(one.line, one.rule) for one in dataset.refused] == [(3, "too_long"), (4, "no_answer")]
    for row in range(2):
        assert dataset.rows.aux_of(row)[-1] == 3
        assert dataset.rows.ids_of(row)[-1] == 3


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"line": 1}\n{"line"\n')
    with pytest.raises(TrainFailure, match=r"Line 2 of rows\.jsonl is not a row"):
        load_dataset(path, chat(), cache=tmp_path / "cache", tokenizer_sha256="t")


def test_cache_is_used_and_a_damaged_one_made_anew(tmp_path: Path) -> None:
    rows = [*chat_rows(5), {"messages": []}]
    first = load(tmp_path, rows, chat())
    [stored] = (tmp_path / "cache").iterdir()
    written = stored.stat().st_ino
    again = load(tmp_path, rows, chat())
    assert stored.stat().st_ino == written
    assert torch.equal(again.rows.ids, first.rows.ids)
    assert again.refused == first.refused
    stored.write_bytes(stored.read_bytes()[:-9])
    assert torch.equal(load(tmp_path, rows, chat()).rows.ids, first.rows.ids)
    assert stored.stat().st_ino != written
    load(tmp_path, rows, chat(max_length=63))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_rows_are_json_with_any_script(tmp_path: Path) -> None:
    rows = [{"messages": turn("привет", "你好")}]
    assert json.loads(write_rows(tmp_path / "x", rows).read_text())["messages"][1]["content"] == "你好"
    tokeniser = chat()
    dataset = load(tmp_path, rows, tokeniser)
    learn = dataset.rows.aux_of(0).bool()
    assert tokeniser.prompts.raw.decode(dataset.rows.ids_of(0)[learn].tolist()) == "你好<|im_end|>"


def test_a_changed_byte_in_the_cache_is_seen(tmp_path: Path) -> None:
    first = load(tmp_path, chat_rows(5), chat())
    [stored] = (tmp_path / "cache").iterdir()
    for place in (-1, -40):
        content = bytearray(stored.read_bytes())
        content[place] ^= 1
        stored.write_bytes(content)
        again = load(tmp_path, chat_rows(5), chat())
        assert all(torch.equal(again.rows.tensors()[name], one) for name, one in first.rows.tensors().items())


def test_a_cache_of_other_rows_put_in_its_place_is_not_taken(tmp_path: Path) -> None:
    first = load(tmp_path, chat_rows(5), chat())
    [stored] = (tmp_path / "cache").iterdir()
    other = tmp_path / "other"
    other.mkdir()
    load(other, chat_rows(9), chat())
    [foreign] = (other / "cache").iterdir()
    stored.write_bytes(foreign.read_bytes())
    assert torch.equal(load(tmp_path, chat_rows(5), chat()).rows.ids, first.rows.ids)


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    tensors = {"ids": torch.arange(100)}
    roomy = TokenCache(tmp_path)
    for age, key in enumerate(["a", "b", "c"]):
        roomy.write(key, tensors, {"of": key})
        os.utime(tmp_path / f"{key}.safetensors", (1000 + age, 1000 + age))
    size = (tmp_path / "a.safetensors").stat().st_size
    assert roomy.read("a") is not None  # used: now the newest
    mapped = roomy.read("b")
    os.utime(tmp_path / "b.safetensors", (1001, 1001))
    TokenCache(tmp_path, most_bytes=3 * size).write("d", tensors, {})
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]
    assert mapped is not None
    assert torch.equal(mapped[0]["ids"], tensors["ids"])
    TokenCache(tmp_path, most_bytes=0).write("e", tensors, {})
    assert [path.stem for path in tmp_path.iterdir()] == ["e"]


def test_tokens_made_by_other_code_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    before = classes().key("rows", "tokenizer")
    assert classes().key("rows", "tokenizer") == before
    monkeypatch.setattr(data, "CODE_SHA256", "as they were before an upgrade")
    assert classes().key("rows", "tokenizer") != before
