"""Labels and vectors: equal to plain transformers, whatever else is in the batch."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from serve_harness import Harness, root, served, written
from torch.nn import functional
from transformers import AutoModel, AutoModelForSequenceClassification

from fettle_trainer.serve_artefact import read_pooling
from fettle_trainer.serve_refusal import ServeRefusal

TEXTS = [
    "spam",
    "the quick brown fox jumps over the lazy dog " * 2,
    "please help",
    "漢字 🦊",
    "a b c d e f g h i j k l m n o p",
]


def ids_of(name: str, family: str, text: str) -> torch.Tensor:
    return torch.tensor([served(name, family).tokenizer(text)["input_ids"]])


def reference_probabilities(
    name: str, adapter: str | None, num_labels: int, text: str, family: str = "encoder"
) -> list[float]:
    model: Any = AutoModelForSequenceClassification.from_pretrained(written(name), num_labels=num_labels)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(root() / adapter)).merge_and_unload()
    model.eval()
    with torch.no_grad():
        return torch.softmax(model(ids_of(name, family, text)).logits[0], dim=-1).tolist()


def probabilities(scores: list[dict[str, Any]], labels: list[str]) -> list[float]:
    found = {score["label"]: score["probability"] for score in scores}
    assert sorted(found.values(), reverse=True) == [score["probability"] for score in scores]
    return [found[label] for label in labels]


ADAPTERS = [("bert-adapter-0", ["ham", "spam"]), ("bert-adapter-1", ["a", "b", "c"])]


def test_two_adapters_with_other_heads_answer_from_one_batch_as_each_does_alone() -> None:
    written("bert")
    requests = [{"op": "classify", "adapter": str(root() / name), "inputs": TEXTS} for name, _ in ADAPTERS]
    answers = Harness("bert", "encoder").run(requests)
    for answer, (name, labels) in zip(answers, ADAPTERS, strict=True):
        assert answer.last["num_tokens"] == sum(ids_of("bert", "encoder", text).shape[1] for text in TEXTS)
        for text, scores in zip(TEXTS, answer.last["scores"], strict=True):
            expected = reference_probabilities("bert", name, len(labels), text)
            assert probabilities(scores, labels) == pytest.approx(expected, abs=1e-5)


def test_a_tuned_folder_classifies_with_its_own_head() -> None:
    answer = Harness("bert-tuned", "encoder").one({"op": "classify", "inputs": TEXTS})
    for text, scores in zip(TEXTS, answer.last["scores"], strict=True):
        expected = reference_probabilities("bert-tuned", None, 2, text)
        assert probabilities(scores, ["no", "yes"]) == pytest.approx(expected, abs=1e-5)


def test_a_decoder_classifies_with_an_adapters_head() -> None:
    written("llama")
    written("llama-classifier")
    folder = "llama-classifier-adapter"
    answer = Harness("llama", "decoder").one(
        {"op": "classify", "adapter": str(root() / folder), "inputs": TEXTS}
    )
    for text, scores in zip(TEXTS, answer.last["scores"], strict=True):
        expected = reference_probabilities("llama", folder, 3, text, family="decoder")
        assert probabilities(scores, ["red", "green", "blue"]) == pytest.approx(expected, abs=1e-5)


def test_a_text_that_ends_with_the_padding_token_is_read_to_its_end() -> None:
    written("llama")
    written("llama-classifier")
    adapter = str(root() / "llama-classifier-adapter")
    ids, pad = [40, 41, 42, 1], served("llama", "decoder").tokenizer.pad_token_id
    assert ids[-1] == pad
    answer = Harness("llama", "decoder").one(
        {"op": "classify", "adapter": adapter, "inputs": [ids, [50] * 9]}
    )
    model: Any = AutoModelForSequenceClassification.from_pretrained(written("llama"), num_labels=3)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        expected = torch.softmax(model.score(hidden), dim=-1).tolist()
    assert probabilities(answer.last["scores"][0], ["red", "green", "blue"]) == pytest.approx(
        expected, abs=1e-5
    )


def vectors(message: dict[str, Any]) -> list[torch.Tensor]:
    raw = [base64.b64decode(text) for text in message["vectors"]]
    return [torch.tensor(struct.unpack(f"<{len(data) // 4}f", data)) for data in raw]


def test_embeddings_are_the_normalised_mean_of_plain_transformers() -> None:
    answer = Harness("bert", "encoder").one(
        {"op": "embed", "inputs": [*TEXTS, ids_of("bert", "encoder", TEXTS[0])[0].tolist()]}
    )
    model: Any = AutoModel.from_pretrained(written("bert")).eval()
    found = vectors(answer.last)
    for text, vector in zip(TEXTS, found[:-1], strict=True):
        with torch.no_grad():
            hidden = model(ids_of("bert", "encoder", text)).last_hidden_state[0]
        assert torch.allclose(vector, functional.normalize(hidden.mean(0), dim=-1), atol=1e-5)
        assert float(vector.norm()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(found[-1], found[0], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"embedding_dimension": 8}, "mean"),
        (None, "mean"),
    ],
)
def test_a_folder_of_sentence_transformers_says_how_texts_are_pooled(
    tmp_path: Path, settings: dict[str, Any] | None, mode: str
) -> None:
    """A bug: folders that its version 6 saved were refused, since they name the mode."""
    write_pooling_settings(tmp_path, settings)
    assert read_pooling(tmp_path).mode == mode


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean and max"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls", "mean"]}, "cls and mean"),
    ],
)
def test_another_pooling_is_refused_by_its_name(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    write_pooling_settings(tmp_path, settings)
    with pytest.raises(ServeRefusal, match=f"not served, {said}: expected mean or cls alone"):
        read_pooling(tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sentence_bert_config": {"max_seq_length": 64}, "tokenizer_config": {"model_max_length": 512}}, 64),
        ({"sentence_bert_config": {}, "tokenizer_config": {"model_max_length": 256}}, 256),
        ({"sentence_bert_config": {}, "tokenizer_config": {}}, None),
    ],
)
def test_a_folder_of_sentence_transformers_says_how_long_a_text_may_be(
    tmp_path: Path, files: dict[str, Any], expected: int | None
) -> None:
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "modules.json").write_text("[]")
    assert read_pooling(tmp_path).max_length == expected


def test_another_models_tokenizer_does_not_bound_what_is_embedded(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8}))
    assert read_pooling(tmp_path).max_length is None


def write_pooling_settings(folder: Path, settings: dict[str, Any] | None) -> None:
    if settings is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))


def test_a_long_text_is_cut_to_classify_and_refused_to_embed() -> None:
    long = "help " * 200
    harness = Harness("bert-tuned", "encoder")
    cut = harness.one({"op": "classify", "inputs": [long]})
    ids = ids_of("bert-tuned", "encoder", long)[0].tolist()
    assert cut.last["num_tokens"] == 64
    model: Any = AutoModelForSequenceClassification.from_pretrained(written("bert-tuned")).eval()
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([ids[:63] + ids[-1:]])).logits[0], dim=-1).tolist()
    assert probabilities(cut.last["scores"][0], ["no", "yes"]) == pytest.approx(expected, abs=1e-5)
    refused = harness.one({"op": "embed", "inputs": ["fine", long]})
    assert refused.last["code"] == "context_length_exceeded"
    assert f"Input 1 has {len(ids)} tokens; this model takes at most 64" in refused.last["message"]


def test_cancelling_takes_the_waiting_texts_away() -> None:
    harness = Harness("bert", "encoder")
    harness.handle({"id": "gone", "op": "embed", "inputs": ["x"] * 300})
    harness.handle({"id": "next", "op": "embed", "inputs": ["y"]})
    harness.process.step()
    harness.handle({"id": "gone", "op": "cancel"})
    while harness.process.busy:
        harness.process.step()
    assert [(message["id"], message["type"]) for message in harness.messages()] == [
        ("gone", "cancelled"),
        ("next", "vectors"),
    ]


@pytest.mark.parametrize(
    ("name", "request_", "code"),
    [
        ("bert", {"op": "classify", "inputs": ["x"]}, "unsupported_parameter"),
        ("bert", {"op": "generate", "prompt": {"text": "x"}}, "unsupported_parameter"),
        ("bert", {"op": "embed", "inputs": [[1, 400]]}, "value_out_of_range"),
        ("bert", {"op": "embed", "inputs": [[]]}, "invalid_request"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(name: str, request_: dict[str, Any], code: str) -> None:
    answer = Harness(name, "encoder").one(request_)
    assert (answer.last["type"], answer.last["code"]) == ("error", code)
