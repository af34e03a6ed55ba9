"""What transformers exports is read once, and is what it reads itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.utils import import_utils

from fettle_trainer import transformers_exports
from fettle_trainer.transformers_exports import kept

PACKAGE = str(Path(__file__).parents[1] / "src")
MODELS = Path(transformers.__file__).parent / "models"


class Reader:
    """transformers' own, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, module_path: str, prefix: str | None = None) -> Any:
        self.asked += 1
        found = import_utils.create_import_structure_from_path(module_path)
        spread = import_utils.spread_import_structure(found)
        start = "" if prefix is None else f"{prefix}."
        return {
            needs: {f"{start}{one}": names for one, names in modules.items()}
            for needs, modules in spread.items()
        }


@pytest.fixture(name="prefix", autouse=True)
def own_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return tmp_path / "fettle"


def test_what_is_kept_is_what_transformers_reads(prefix: Path) -> None:
    own, reader = Reader(), Reader()
    for place, start in ((MODELS, "models"), (str(MODELS / "__init__.py"), None)):
        expected = own(str(MODELS / "__init__.py"), start)
        found = kept(reader)(place, start)
        assert found == expected
        # Of two modules with one name the later counts.
        assert [list(modules) for modules in found.values()] == [list(one) for one in expected.values()]
        assert list(found) == list(expected)
    assert reader.asked == 1
    assert len(list(prefix.iterdir())) == 1


def test_a_model_alone_is_read_as_ever(prefix: Path) -> None:
    reader = Reader()
    assert kept(reader)(str(MODELS / "bert" / "__init__.py"))
    assert reader.asked == 1
    assert not prefix.exists()


def test_whoever_changes_what_he_was_given_changes_it_for_himself() -> None:
    read = kept(Reader())
    first = read(MODELS, "models")
    first[frozenset()].clear()
    assert read(MODELS, "models")[frozenset()]


@pytest.mark.parametrize("broken", ["", "{}", "[]", "[[1, 2]]", "[1]", '[["torch"], 3]'])
def test_a_broken_file_is_read_anew(prefix: Path, broken: str) -> None:
    reader = Reader()
    expected = kept(reader)(MODELS)
    (file,) = prefix.iterdir()
    file.write_text(broken)
    assert kept(reader)(MODELS) == expected
    assert reader.asked == 2
    assert json.loads(file.read_text())


def test_another_release_is_read_anew(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    kept(reader)(MODELS)
    monkeypatch.setattr(transformers_exports.importlib.metadata, "version", lambda _: "99.0")
    kept(reader)(MODELS)
    assert reader.asked == 2
    assert len(list(prefix.iterdir())) == 2


def test_where_nothing_can_be_kept_it_is_read(prefix: Path) -> None:
    prefix.write_text("a file where the folder should be")
    reader = Reader()
    assert kept(reader)(MODELS) == kept(reader)(MODELS)
    assert reader.asked == 2


OWN_PROCESS = """
import sys
from fettle_trainer.light_start import hide_unused_packages
before = list(sys.meta_path)
hide_unused_packages()
sys.prefix = sys.argv[1]
from transformers import BertConfig
from transformers.models.llama import LlamaConfig
assert sys.meta_path[-len(before):] == before and len(sys.meta_path) <= len(before) + 1, sys.meta_path
print(BertConfig.__module__, LlamaConfig.__module__)
"""


def test_a_process_of_ours_finds_its_models_the_first_time_and_the_next(prefix: Path, tmp_path: Path) -> None:
    for _ in range(2):
        said = subprocess.run(
            [sys.executable, "-c", OWN_PROCESS, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": PACKAGE},
            capture_output=True,
            text=True,
            check=True,
        )
        expected = "transformers.models.bert.configuration_bert transformers.models.llama.configuration_llama"
        assert said.stdout.strip() == expected
        assert len(list(prefix.iterdir())) == 1
