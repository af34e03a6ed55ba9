"""Numbers, entities, answers and vectors of tuned models: served as plain transformers and PEFT give them."""

import base64
import io
import json
import struct
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from peft import PeftModel
from test_tasks import LABELLED, spec_of
from tiny import LABELS, make_spec
from torch import Tensor
from torch.nn import functional
from training import train

from fettle_trainer.serve import ModelProcess
from fettle_trainer.serve_artefact import Pooling, read_pooling
from fettle_trainer.serve_models import load_model

CLASSES = {
    "regression": "AutoModelForSequenceClassification",
    "ranking": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "embedding": "AutoModel",
    "classification": "AutoModelForSequenceClassification",
}
NUM_OUTPUTS = {
    "classification": 3,
    "regression": 1,
    "ranking": 1,
    "token_classification": 7,
    "question_answering": 2,
}
FOX = "the quick brown fox jumps over the lazy dog"
LONG = " ".join([f"{FOX} refund my invoice please"] * 7)


@dataclass(frozen=True)
class Tuned:
    """A tuned model, served by a process's code and loaded by tools that are not ours."""

    task: str
    base: Path
    artefact: Path
    process: ModelProcess
    out: io.StringIO
    model: Any
    tokenizer: Any

    def ask(self, op: str, inputs: list[Any]) -> dict[str, Any]:
        adapter = str(self.artefact) if (self.artefact / "adapter_config.json").exists() else None
        self.process.handle(json.dumps({"id": "1", "op": op, "adapter": adapter, "inputs": inputs}))
        while self.process.busy:
            self.process.step()
        said = [json.loads(line) for line in self.out.getvalue().splitlines()]
        return [message for message in said if message["type"] != "state"][-1]

    def predict(self, inputs: list[dict[str, str]]) -> list[Any]:
        answer = self.ask("predict", inputs)
        assert answer["type"] == "predictions", answer
        return answer["predictions"]

    def reference(self, *texts: str, **options: Any) -> tuple[Any, Any]:
        """Encoding and output of one input alone, without padding."""
        encoded = self.tokenizer(*texts, return_tensors="pt", **options)
        takes = {name: encoded[name] for name in self.tokenizer.model_input_names if name in encoded}
        with torch.no_grad():
            return encoded, self.model(**takes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predict")


def tuned(folder: Path, task: str, kind: str, method: str, **changes: Any) -> Tuned:
    spec = spec_of(folder, task, kind)
    output = folder / f"{task}-{kind}-{method}"
    given: dict[str, Any] = {"data__labels": LABELS} if task in LABELLED else {}
    if task == "regression":
        given |= {"hyperparameters__target_mean": 50.0, "hyperparameters__target_std": 8.0}
    family = spec.base_model.family
    given |= {"hyperparameters__num_train_epochs": 16, "hyperparameters__max_length": 32, **changes}
    made = make_spec(
        folder / kind, Path(spec.data.train_path), output,
        task=task, method=method, base_model__family=family, **given,
    )  # fmt: skip
    code, events = train(made)
    assert code == 0, events[-1]
    base, artefact = folder / kind, output / "artefact"
    is_adapter = method != "full"
    served = load_model(
        base if is_adapter else artefact, family, device=torch.device("cpu"), dtype=torch.float32
    )
    out = io.StringIO()
    process = ModelProcess(served, out, Namespace(max_adapters=2, max_rows=4, cache_mebibytes=16))
    loader: Any = getattr(transformers, CLASSES[task])
    counts = {"num_labels": NUM_OUTPUTS[task]} if task in NUM_OUTPUTS else {}
    model = loader.from_pretrained(base if is_adapter else artefact, **counts)
    if is_adapter:
        # Merged, since PEFT's own forward for questions leaves token types out.
        model = cast("Any", PeftModel).from_pretrained(model, str(artefact)).merge_and_unload()
    tokenizer = cast("Any", transformers.AutoTokenizer).from_pretrained(base)
    return Tuned(task, base, artefact, process, out, model.eval(), tokenizer)


@pytest.mark.parametrize(
    ("task", "kind", "method"),
    [
        ("regression", "llama", "lora"),
        ("regression", "bert", "full"),
        ("ranking", "qwen2", "full"),
        ("ranking", "bert", "lora"),
        ("ranking", "bert", "dora"),
    ],
)
def test_numbers_are_in_the_units_of_the_rows(folder: Path, task: str, kind: str, method: str) -> None:
    model = tuned(folder, task, kind, method)
    asked = [("login broken",), (FOX,), ("refund", "my invoice please"), ("login", FOX)]
    found = model.predict([dict(zip(("text", "second"), one, strict=False)) for one in asked])
    mean, std = (50.0, 8.0) if task == "regression" else (0.0, 1.0)
    for one, said in zip(asked, found, strict=True):
        expected = float(model.reference(*one)[1].logits[0, 0]) * std + mean
        assert said["score"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert len({round(said["score"], 4) for said in found}) == len(asked)


def entities_by_hand(model: Tuned, text: str) -> list[tuple[int, int, str]]:
    """Words and tags, one after the other: B begins, I goes on, O ends."""
    encoded, output = model.reference(text, return_offsets_mapping=True)
    names = ["O", *(f"{part}-{label}" for label in LABELS for part in "BI")]
    found: list[tuple[int, int, str]] = []
    open_label, seen = "", set[int]()
    for token, word in enumerate(encoded.word_ids(0)):
        if word is None or word in seen:
            continue
        seen.add(word)
        pieces = [offsets for at, offsets in enumerate(encoded["offset_mapping"][0].tolist())
                  if encoded.word_ids(0)[at] == word]  # fmt: skip
        tag = names[int(output.logits[0, token].argmax())]
        label = tag[2:]
        if tag.startswith("I-") and label == open_label:
            found[-1] = (found[-1][0], pieces[-1][1], label)
        elif tag != "O":
            found.append((pieces[0][0], pieces[-1][1], label))
        open_label = label
    return found


@pytest.mark.parametrize(("kind", "method"), [("bert", "full"), ("bert", "lora"), ("distilbert", "full")])
def test_entities_come_with_their_characters(folder: Path, kind: str, method: str) -> None:
    model = tuned(folder, "token_classification", kind, method)
    texts = ["refund my invoice", "login broken please", "grüße 🦊 login", FOX]
    said = model.predict([{"text": text} for text in texts])
    for text, one in zip(texts, said, strict=True):
        found = [(entity["start"], entity["end"], entity["label"]) for entity in one["entities"]]
        assert found == entities_by_hand(model, text)
        for entity in one["entities"]:
            assert entity["text"] == text[entity["start"] : entity["end"]] != ""
            assert 1 / 7 < entity["probability"] <= 1
    assert any(one["entities"] for one in said)
    refused = model.ask("predict", [{"text": LONG}])
    assert refused["code"] == "context_length_exceeded"
    assert "Send it in parts" in refused["message"]
    assert model.ask("predict", [{"text": "a", "second": "b"}])["code"] == "invalid_request"
    assert "no labels" in model.ask("classify", ["login"])["message"]


def answer_by_hand(model: Tuned, question: str, context: str) -> tuple[float, int, int] | None:
    """Every pair of marks of every window, less what the window says of no answer."""
    room = 32 - len(model.tokenizer(question, "")["input_ids"])
    encoded = model.tokenizer(
        question, context, truncation="only_second", max_length=32, stride=room // 3,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    best: tuple[float, int, int] | None = None
    for number, ids in enumerate(encoded["input_ids"]):
        inputs = {"input_ids": torch.tensor([ids])}
        if "token_type_ids" in encoded:
            inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][number]])
        with torch.no_grad():
            output = model.model(**inputs)
        start, end = output.start_logits[0], output.end_logits[0]
        inside = [at for at, side in enumerate(encoded.sequence_ids(number)) if side == 1]
        for first in inside:
            for last in inside:
                score = float(start[first] + end[last] - start[0] - end[0])
                if first <= last and score > (best[0] if best else 0.0):
                    offsets = encoded["offset_mapping"][number]
                    best = (score, offsets[first][0], offsets[last][1])
    return best


@pytest.mark.parametrize(("kind", "method"), [("bert", "full"), ("bert", "lora"), ("distilbert", "full")])
def test_answers_are_the_best_of_all_windows(folder: Path, kind: str, method: str) -> None:
    model = tuned(folder, "question_answering", kind, method)
    asked = [("which fox", "refund my invoice"), ("which fox", LONG), ("please", FOX), ("which fox", "login")]
    said = model.predict([{"text": question, "second": context} for question, context in asked])
    for (question, context), one in zip(asked, said, strict=True):
        expected = answer_by_hand(model, question, context)
        if expected is None:
            assert one["answer"] is None
            continue
        answer = one["answer"]
        assert (answer["start"], answer["end"]) == expected[1:]
        assert answer["score"] == pytest.approx(expected[0], rel=1e-3, abs=1e-4)
        assert answer["text"] == context[answer["start"] : answer["end"]]
    assert any(one["answer"] for one in said)
    refused = model.ask("predict", [{"text": "which fox"}])
    assert (refused["code"], "question and context" in refused["message"]) == ("invalid_request", True)


@pytest.mark.parametrize("method", ["full", "lora", "ia3"])
def test_vectors_of_a_tuned_encoder_are_those_that_were_learnt(folder: Path, method: str) -> None:
    model = tuned(folder, "embedding", "bert", method)
    texts = ["login", FOX, "refund my invoice please"]
    answer = model.ask("embed", texts)
    bare = transformers.AutoModel.from_pretrained(model.base)
    for text, vector in zip(texts, answer["vectors"], strict=True):
        found = torch.tensor(struct.unpack("<32f", base64.b64decode(vector)))
        encoded, output = model.reference(text)
        torch.testing.assert_close(found, _mean(output), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            untuned = _mean(cast("Any", bare)(input_ids=encoded["input_ids"]))
        assert float((found - untuned).abs().max()) > 1e-3


def test_a_tuned_encoder_of_texts_is_a_folder_of_sentence_transformers(folder: Path) -> None:
    """That it makes the same vectors of it is checked by the bench, which has it."""
    artefact = tuned(folder, "embedding", "distilbert", "full", hyperparameters__num_train_epochs=1).artefact
    modules = json.loads((artefact / "modules.json").read_text())
    assert [(one["path"], one["type"]) for one in modules] == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
        ("2_Normalize", "sentence_transformers.models.Normalize"),
    ]
    assert read_pooling(artefact) == Pooling("mean", 32)


def _mean(output: Any) -> Tensor:
    return functional.normalize(output.last_hidden_state[0].mean(dim=0), dim=-1)


def test_pairs_are_classified_as_pairs(folder: Path) -> None:
    model = tuned(folder, "classification", "bert", "lora")
    asked = [("login", FOX), ("login broken",), ("refund", "my invoice")]
    said = model.ask("classify", [dict(zip(("text", "second"), one, strict=False)) for one in asked])
    for one, scores in zip(asked, said["scores"], strict=True):
        expected = torch.softmax(model.reference(*one)[1].logits[0], dim=-1).tolist()
        found = {score["label"]: score["probability"] for score in scores}
        assert [found[label] for label in LABELS] == pytest.approx(expected, abs=1e-5)
    assert said["scores"] != model.ask("classify", ["login", "login broken", "refund"])["scores"]


def test_a_model_that_was_tuned_otherwise_predicts_nothing(folder: Path) -> None:
    model = tuned(folder, "classification", "bert", "full")
    refused = model.ask("predict", [{"text": "login"}])
    assert refused["code"] == "unsupported_parameter"
    assert refused["message"].endswith("predicts no number, entity or answer: its task is classification.")
