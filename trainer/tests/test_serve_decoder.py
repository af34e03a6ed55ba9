"""Generation with decoders: independent of the neighbours in a batch, equal to plain transformers."""

import json
from typing import Any

import pytest
import torch
from peft import PeftModel
from serve_folders import SPECIAL
from serve_harness import Harness, greedy, root, served, written
from torch import Tensor
from transformers import AutoModelForCausalLM

PROMPTS = [
    "hello",
    "the quick brown",
    "{",
    "my parcel has not come, please help; " * 3,
    "Grüße",
    "a b c d e",
    "漢字",
    "x",
]


def adapter(number: int) -> str:
    written("llama")
    return str(root() / f"llama-adapter-{number}")


def mixed_requests() -> list[dict[str, Any]]:
    others = [str(root() / f"llama-{kind}") for kind in ("adapter-ia3", "prompt", "prefix")]
    adapters = [None, adapter(0), adapter(1), adapter(2), *others]
    return [greedy(prompt, adapter=adapters[n % 7], max_tokens=8 + 5 * n) for n, prompt in enumerate(PROMPTS)]


def reference_logits(name: str, adapter_path: str | None, ids: list[int]) -> Tensor:
    """T x V logits of plain transformers, the adapter merged by PEFT into the weights where it is a change of
    them."""
    model: Any = AutoModelForCausalLM.from_pretrained(written(name))
    if adapter_path is not None:
        model = PeftModel.from_pretrained(model, adapter_path)
        model = model if adapter_path.endswith(("-prompt", "-prefix")) else model.merge_and_unload()
    given = torch.tensor([ids])
    with torch.no_grad():
        return model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0, -len(ids) :]


def reference_greedy(name: str, adapter_path: str | None, ids: list[int], count: int) -> list[int]:
    stops = served(name, "decoder").voice.stop_ids
    grown = list(ids)
    for _ in range(count):
        token = int(reference_logits(name, adapter_path, grown)[-1].argmax())
        if token in stops:
            break
        grown.append(token)
    return grown[len(ids) :]


def test_greedy_alone_equals_greedy_in_a_batch_of_eight_with_mixed_adapters() -> None:
    alone = [Harness("llama", "decoder").one(request) for request in mixed_requests()]
    together = Harness("llama", "decoder").run(mixed_requests())
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.last for answer in together] == [
        {**answer.last, "id": str(n)} for n, answer in enumerate(alone)
    ]
    assert len({answer.text for answer in together}) == 8


def test_a_request_that_joins_late_changes_nothing_for_those_who_run() -> None:
    requests = mixed_requests()
    harness = Harness("llama", "decoder", max_rows=3)
    alone = [harness.one(request).text for request in requests]
    for number, request in enumerate(requests):
        harness.handle({"id": str(number), **request})
        for _ in range(3):
            harness.process.step()
    while harness.process.busy:
        harness.process.step()
    texts = [
        "".join(m.get("text", "") for m in messages) for messages in grouped(harness.messages()).values()
    ]
    assert texts == alone


def grouped(messages: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_id: dict[str, list[dict[str, Any]]] = {}
    for message in messages:
        by_id.setdefault(message["id"], []).append(message)
    return dict(sorted(by_id.items()))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("llama", None),
        ("llama", "llama-adapter-0"),
        ("llama", "llama-adapter-2"),
        ("gpt2", None),
        ("llama", "llama-adapter-dora"),
        ("gpt2", "gpt2-adapter"),
        ("gpt2", "gpt2-adapter-dora"),
        ("llama", "llama-adapter-ia3"),
        ("gpt2", "gpt2-adapter-ia3"),
        ("llama", "llama-prompt"),
        ("llama", "llama-prefix"),
        ("gpt2", "gpt2-prompt"),
        ("gpt2", "gpt2-prefix"),
    ],
)
def test_greedy_equals_plain_transformers_with_the_adapter_merged(name: str, path: str | None) -> None:
    written(name)
    adapter_path = None if path is None else str(root() / path)
    tokenizer = served(name, "decoder").tokenizer
    ids = tokenizer("please help the fox", add_special_tokens=False)["input_ids"]
    expected = reference_greedy(name, adapter_path, ids, 20)
    answer = Harness(name, "decoder").one(greedy("please help the fox", adapter=adapter_path))
    assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_logprobs_are_those_of_plain_transformers() -> None:
    tokenizer = served("llama", "decoder").tokenizer
    request = greedy("please help", adapter=adapter(0), logprobs=5, echo=True, max_tokens=6)
    answer = Harness("llama", "decoder").one(request)
    ids = tokenizer("please help", add_special_tokens=False)["input_ids"]
    ids += reference_greedy("llama", adapter(0), ids, 6)
    logprobs = torch.log_softmax(reference_logits("llama", adapter(0), ids), dim=-1)
    assert answer.logprobs[0]["logprob"] is None
    reported = [entry["logprob"] for entry in answer.logprobs[1:]]
    expected = [float(logprobs[position, token]) for position, token in enumerate(ids[1:])]
    assert reported == pytest.approx(expected, abs=1e-4)
    assert sum(reported) == pytest.approx(sum(expected), abs=1e-3)
    assert [entry["top"][0]["logprob"] for entry in answer.logprobs[1:]] == pytest.approx(
        logprobs[: len(ids) - 1].max(-1).values.tolist(), abs=1e-4
    )
    assert (
        bytes(byte for entry in answer.logprobs for byte in entry["bytes"]).decode("utf-8", "replace")
        == answer.text
    )


def test_a_prompt_read_in_chunks_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    request = greedy("my parcel has not come, please help; " * 8, adapter=adapter(1))
    whole = Harness("llama", "decoder").one(request).text
    monkeypatch.setattr("fettle_trainer.generate_decoder.PREFILL_CHUNK", 7)
    assert Harness("llama", "decoder").one(request).text == whole


def test_pieces_make_the_text_that_the_tokenizer_makes() -> None:
    sampled = {**greedy("漢字 🦊"), "temperature": 1.4, "max_tokens": 60, "logprobs": 0}
    for seed in range(6):
        answer = Harness("llama", "decoder").one({**sampled, "seed": seed})
        # Special tokens spell themselves out in the report and are silent in the text.
        said = [entry for entry in answer.logprobs if entry["token"] not in SPECIAL]
        spelt = b"".join(bytes(entry["bytes"]) for entry in said)
        assert answer.text == spelt.decode("utf-8", "replace")


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it() -> None:
    request = {**greedy("hello"), "temperature": 1.2, "top_p": 0.9, "seed": 11}
    alone = Harness("llama", "decoder").one(request).text
    beside = [{**request, "seed": seed} for seed in (1, 2, 3)]
    texts = [answer.text for answer in Harness("llama", "decoder").run([beside[0], request, *beside[1:]])]
    assert texts[1] == alone
    assert len(set(texts)) == 4


def test_a_stop_string_ends_the_answer_before_it() -> None:
    whole = Harness("llama", "decoder").one(greedy("the quick brown", adapter=adapter(2)))
    stop = whole.text[5:8]
    cut = Harness("llama", "decoder").one(greedy("the quick brown", adapter=adapter(2), stop=[stop]))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.last["finish_reason"] == "stop"
    assert cut.last["completion_tokens"] < whole.last["completion_tokens"]


def test_the_limit_is_told_as_length() -> None:
    answer = Harness("llama", "decoder").one(greedy("the quick brown", adapter=adapter(2), max_tokens=5))
    assert answer.last["finish_reason"] == "length"
    assert answer.last["completion_tokens"] == 5


def test_echo_with_no_tokens_scores_the_prompt() -> None:
    answer = Harness("llama", "decoder").one(greedy("please help", echo=True, max_tokens=0, logprobs=0))
    assert answer.text == "please help"
    assert answer.last["completion_tokens"] == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.8])
@pytest.mark.parametrize("max_tokens", [3, 12, 60])
def test_json_mode_always_parses(temperature: float, max_tokens: int) -> None:
    requests = [
        {**greedy(prompt), "temperature": temperature, "seed": n, "max_tokens": max_tokens, "json_mode": True}
        for n, prompt in enumerate(PROMPTS)
    ]
    for answer in Harness("llama", "decoder").run(requests):
        assert isinstance(json.loads(answer.text), dict)
        assert answer.last["completion_tokens"] <= max_tokens


def test_json_mode_says_when_the_limit_closed_the_object() -> None:
    cut = Harness("llama", "decoder").one(greedy("hello", json_mode=True, max_tokens=9))
    assert cut.last["finish_reason"] == "length"
    tokenizer = served("llama", "decoder").tokenizer
    brackets = {str(tokenizer.convert_tokens_to_ids(token)): 60.0 for token in "{}"}
    whole = Harness("llama", "decoder").one(
        greedy("hello", json_mode=True, max_tokens=60, logit_bias=brackets)
    )
    assert whole.text == "{}"
    assert whole.last["finish_reason"] == "stop"


def test_cancelling_frees_the_row_for_the_next() -> None:
    harness = Harness("llama", "decoder", max_rows=1)
    endless = greedy("the quick brown", adapter=adapter(2), max_tokens=400, logit_bias={"3": -100})
    harness.handle({"id": "running", **endless})
    harness.handle({"id": "waiting", **greedy("hello", adapter=adapter(0), max_tokens=4)})
    for _ in range(4):
        harness.process.step()
    assert {message["id"] for message in harness.messages() if message["type"] == "delta"} == {"running"}
    harness.handle({"id": "running", "op": "cancel"})
    while harness.process.busy:
        harness.process.step()
    left = grouped(harness.messages())
    assert [message["type"] for message in left["running"]] == ["cancelled"]
    assert left["waiting"][-1]["type"] == "end"


def test_adapters_leave_memory_least_recently_used_first() -> None:
    harness = Harness("llama", "decoder", max_adapters=2)
    for number in (0, 1, 0, 2):
        harness.one(greedy("x", adapter=adapter(number), max_tokens=1))
    harness.process.write_state()
    kept = json.loads(harness._out.getvalue().splitlines()[-1])["adapters"]
    assert kept == [adapter(0), adapter(2)]


REFUSED = [
    (
        {"max_tokens": 510, "prompt": {"text": "hello there"}},
        "context_length_exceeded",
        "tokens of answer; the context of this model is 512",
    ),
    ({"prompt": {"tokens": [5] * 513}}, "context_length_exceeded", "The prompt has 513 tokens"),
    ({"prompt": {"tokens": [5, 400]}}, "value_out_of_range", "this model knows 0 to 399"),
    ({"prompt": {"tokens": []}}, "invalid_request", "is empty"),
    ({"prompt": {"messages": []}}, "invalid_request", "at least one message"),
    ({"prompt": {"messages": [{"role": "wizard", "content": "x"}]}}, "invalid_request", "messages[0].role"),
    ({"prompt": {"text": "half \ud800 pair"}}, "invalid_request", "surrogate"),
    ({"adapter": "/nowhere"}, "inference_failed", "adapter_model.safetensors is missing"),
    ({"op": "embed", "inputs": ["x"]}, "unsupported_parameter", "embeddings need an encoder"),
    ({"op": "classify", "inputs": ["x"]}, "unsupported_parameter", "no classification head"),
    ({"op": "dance"}, "invalid_request", "Unknown `op` 'dance'"),
    ({"temperature": "hot"}, "invalid_request", "malformed"),
]


@pytest.mark.parametrize(("changes", "code", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_what_cannot_be_answered_is_refused_with_its_code(
    changes: dict[str, Any], code: str, words: str
) -> None:
    harness = Harness("llama", "decoder")
    refused, answered = harness.run([{**greedy("hello"), **changes}, greedy("hello", adapter=adapter(0))])
    assert refused.last["type"] == "error"
    assert refused.last["code"] == code
    assert words in refused.last["message"]
    assert answered.last["type"] == "end"


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_count_as_context(kind: str) -> None:
    written("llama")
    path = str(root() / f"llama-{kind}")
    fits, refused = Harness("llama", "decoder").run(
        [
            {**greedy("", adapter=path, max_tokens=1), "prompt": {"tokens": [5] * 506}},
            {**greedy("", adapter=path, max_tokens=1), "prompt": {"tokens": [5] * 507}},
        ]
    )
    assert fits.last["type"] == "end"
    assert refused.last["code"] == "context_length_exceeded"


@pytest.mark.parametrize("folder", ["gpt2-adapter", "gpt2-prefix", "bert-adapter-0"])
def test_an_adapter_of_another_base_is_refused(folder: str) -> None:
    written("gpt2")
    written("bert")
    answer = Harness("llama", "decoder").one(greedy("hello", adapter=str(root() / folder)))
    assert answer.last["code"] == "inference_failed"
    assert "base model it was trained on" in answer.last["message"]
