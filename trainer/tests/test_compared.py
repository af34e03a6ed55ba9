"""Layers are compared with a model's own once for all runs of one base, and again when anything differs."""

import os
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import chat_rows, make_decoder, make_encoder, make_spec, write_rows
from training import of_type, train
from transformers import AutoModel

from fettle_trainer import checksums
from fettle_trainer.compared import Compared

FOUND = "as an earlier run of these weights found"


def spec_of(folder: Path, output: str) -> dict[str, Any]:
    if not (folder / "model").exists():
        make_decoder(folder / "model")
        write_rows(folder / "rows.jsonl", chat_rows(12))
    (folder / output).mkdir()
    spec = make_spec(folder / "model", folder / "rows.jsonl", folder / output)
    spec["runtime"]["cache_dir"] = str(folder / "shared")
    return spec


def told_of(spec: dict[str, Any]) -> tuple[str, list[Any], bytes]:
    """What is told of the layers, the steps, the adapter."""
    code, events = train(spec)
    assert code == 0
    told = next(one["message"] for one in of_type(events, "log") if "weights are trained" in one["message"])
    steps = [(one["step"], one["train_loss"], one["grad_norm"]) for one in of_type(events, "step")]
    adapter = Path(spec["output_dir"]) / "artefact" / "adapter_model.safetensors"
    return told, steps, adapter.read_bytes()


def test_the_second_run_of_a_base_does_not_compare_again_and_has_the_same_bits(tmp_path: Path) -> None:
    first, second = (told_of(spec_of(tmp_path, name)) for name in ("first", "second"))
    assert FOUND not in first[0]
    assert FOUND in second[0]
    assert first[1:] == second[1:]
    assert len(list((tmp_path / "shared").glob("alike-*"))) == 1


def test_other_weights_are_compared(tmp_path: Path) -> None:
    told_of(spec_of(tmp_path, "first"))
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert FOUND not in told_of(spec_of(tmp_path, "second"))[0]
    smaller = spec_of(tmp_path, "third")
    smaller["hyperparameters"]["lora_r"] = 2
    assert FOUND not in told_of(smaller)[0]


class Asked:
    """A comparison that says `unlike`, and counts."""

    def __init__(self, unlike: str = "") -> None:
        self.unlike, self.compared, self.changed = unlike, 0, 0

    def change(self) -> None:
        self.changed += 1

    def compare(self) -> str:
        self.compared += 1
        self.change()
        return self.unlike

    def of(self, compared: Compared, model: Any, what: str = "fused") -> str:
        return compared.ask(model, what, change=self.change, compare=self.compare)


@pytest.fixture(name="model")
def one_model(tmp_path: Path) -> Any:
    return AutoModel.from_pretrained(make_encoder(tmp_path / "model"))


def test_what_differs_is_compared_each_time(tmp_path: Path, model: Any) -> None:
    asked = Asked("answers differ by 3 %")
    for _ in range(2):
        assert asked.of(Compared(tmp_path / "kept", lambda: "w"), model) == "answers differ by 3 %"
    assert asked.compared == 2


def test_the_change_is_made_whether_compared_or_not(tmp_path: Path, model: Any) -> None:
    asked = Asked()
    spared = [Compared(tmp_path / "kept", lambda: "w") for _ in range(3)]
    assert [asked.of(one, model) for one in spared] == ["", "", ""]
    assert (asked.compared, asked.changed) == (1, 3)
    assert [one.was_spared for one in spared] == [False, True, True]


def test_whatever_a_comparison_depends_on_is_in_its_name(tmp_path: Path, model: Any) -> None:
    asked = Asked()

    def anew(what: str = "fused", weights: str = "w") -> bool:
        compared = Compared(tmp_path / "kept", lambda: weights)
        asked.of(compared, model, what)
        return not compared.was_spared

    assert anew()
    assert not anew()
    assert anew(what="packed")
    assert anew(weights="v")
    model.embeddings.word_embeddings.weight.requires_grad_(False)
    assert anew()
    model.config.hidden_act = "relu"
    assert anew()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert anew()
    finally:
        torch.set_num_threads(threads)
    assert not anew()


def test_a_folder_that_cannot_be_written_costs_the_comparison_alone(tmp_path: Path, model: Any) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    asked = Asked()
    assert [asked.of(Compared(tmp_path / "kept", lambda: "w"), model) for _ in range(2)] == ["", ""]
    assert asked.compared == 2


def test_a_change_that_fails_is_told_as_if_it_had_been_compared(tmp_path: Path, model: Any) -> None:
    asked = Asked()
    asked.of(Compared(tmp_path / "kept", lambda: "w"), model)

    def fails() -> None:
        raise ValueError("no memory\nfor it")

    compared = Compared(tmp_path / "kept", lambda: "w")
    assert compared.ask(model, "fused", change=fails, compare=asked.compare) == "ValueError: no memory"
    assert not compared.was_spared


def test_the_words_stand_beside_what_was_spared(tmp_path: Path) -> None:
    """There are no fused layers for gpt2: that its rows may be laid end to end is what was compared."""
    make_decoder(tmp_path / "model", "gpt2")
    write_rows(tmp_path / "rows.jsonl", chat_rows(12))
    told = [told_of(spec_of(tmp_path, name))[0] for name in ("first", "second")]
    assert "rows are laid end to end, without padding; there are no fused layers for gpt2" in told[0]
    assert f"rows are laid end to end, without padding, {FOUND}; there are no fused layers" in told[1]


def test_a_file_is_read_once_while_nobody_changes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_SETTLED_SECONDS", -1)
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    pieces: list[int] = []

    def found() -> tuple[str, int]:
        pieces.clear()
        return checksums.weights_checksum(tmp_path, ["*.safetensors"], lambda: pieces.append(1)), len(pieces)

    first, read = found()
    assert read == 1
    assert found() == (first, 0)
    # Of the same size, and dated as before: a copy that keeps times.
    dated = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(dated.st_atime_ns, dated.st_mtime_ns))
    other, read = found()
    assert (other != first, read) == (True, 1)


def test_a_file_just_changed_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    checksums.weights_checksum(tmp_path, ["*.safetensors"])
    assert not [one for one in checksums._crcs if one[0].startswith(str(tmp_path))]


def test_a_checksum_is_the_files_however_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.safetensors").write_bytes(bytes(range(200)))
    (tmp_path / "a.safetensors").write_bytes(b"")
    (tmp_path / "other").write_bytes(b"not asked for")
    expected = sha256()
    for name, content in (("a.safetensors", b""), ("b.safetensors", bytes(range(200)))):
        expected.update(f"{name}\0{len(content)}\0{zlib.crc32(content)}\n".encode())
    found = [checksums.weights_checksum(tmp_path, ["*.safetensors"])]
    monkeypatch.setattr(checksums, "_PIECE", 7)
    found.append(checksums.weights_checksum(tmp_path, ["*.safetensors"]))
    assert found == [expected.hexdigest()] * 2
