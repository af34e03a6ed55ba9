"""Model folders that must not be loaded."""

import json
import os
import struct
from pathlib import Path

import pytest
from tiny import make_decoder

from fettle_trainer.failure import TrainFailure
from fettle_trainer.model_folder import check_model_folder, check_safetensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_decoder(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_plain_folder_is_taken(model: Path) -> None:
    assert check_model_folder(model)["model_type"] == "llama"


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "x.pt", "sub/x.pkl", "training_args.bin", "flax_model.msgpack"]
)
def test_pickles_are_refused(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"x")
    with pytest.raises(TrainFailure, match="may run code when loaded"):
        check_model_folder(model)


def test_code_and_what_calls_for_it_is_refused(model: Path) -> None:
    (model / "modeling_x.py").write_text("print(1)")
    with pytest.raises(TrainFailure, match=r"modeling_x\.py is program code"):
        check_model_folder(model)
    (model / "modeling_x.py").unlink()
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": "x.Y"})
    with pytest.raises(TrainFailure, match="has auto_map"):
        check_model_folder(model)
    change(model / "tokenizer_config.json", auto_map=None)
    change(model / "config.json", text_config={"_attn_implementation_internal": "someone/kernel"})
    with pytest.raises(TrainFailure, match="has _attn_implementation_internal, which may fetch code"):
        check_model_folder(model)


def test_what_is_missing_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainFailure, match=r"config\.json is missing"):
        check_model_folder(tmp_path)
    (model / "model.safetensors").unlink()
    with pytest.raises(TrainFailure, match=r"has no \.safetensors file"):
        check_model_folder(model)


def test_link_out_of_the_folder_is_refused(model: Path, tmp_path: Path) -> None:
    os.symlink("/etc/hostname", model / "vocab.txt")
    with pytest.raises(TrainFailure, match="is a link to outside"):
        check_model_folder(model)


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    def tensor(start: int, end: int) -> dict[str, object]:
        return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}

    def write(header: object, body: bytes, claim: int | None = None) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if claim is None else claim) + text + body)
        return path

    check_safetensors(write({"a": tensor(0, 8), "b": tensor(8, 12)}, b"\0" * 12))
    for path_of, why in [
        (lambda: write({"a": tensor(0, 8), "b": tensor(4, 12)}, b"\0" * 12), "does not lie where"),
        (lambda: write({"a": tensor(0, 80)}, b"\0" * 8), "does not lie where"),
        (lambda: write({"a": {**tensor(0, 8), "shape": [9]}}, b"\0" * 8), "does not lie where"),
        (lambda: write({"a": tensor(0, 8)}, b"\0" * 9), "its header promises"),
        (lambda: write({"a": 1}, b""), "does not lie where"),
        (lambda: write(b"[" * 100_000, b""), "not JSON"),
        (lambda: write([], b""), "not an object"),
        (lambda: write({}, b"", claim=2**62), "longer than the file"),
        (lambda: write({str(i): tensor(0, 0) for i in range(20_001)}, b""), "lists 20001 tensors"),
    ]:
        with pytest.raises(TrainFailure, match=why):
            check_safetensors(path_of())
