"""Encoder-decoders in waves: equal to transformers' own generate, alone and together."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from serve_harness import Harness, greedy, root, served, written
from transformers import AutoModelForSeq2SeqLM

SOURCES = ["hello", "the quick brown fox jumps", "please help; " * 4, "漢字", "x", "Grüße aus München"]


def reference(name: str, adapter: str | None, source: str, count: int) -> str:
    tokenizer = served(name, "seq2seq").tokenizer
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(written(name))
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(root() / adapter)).merge_and_unload()
    ids = torch.tensor([tokenizer(source)["input_ids"]])
    with torch.no_grad():
        out = model.eval().generate(
            ids, do_sample=False, num_beams=1, max_new_tokens=count, bad_words_ids=[[1]]
        )
    return tokenizer.decode(out[0], skip_special_tokens=True)


@pytest.mark.parametrize(("name", "adapters"), [("t5", [None, "t5-adapter"]), ("bart", [None])])
def test_greedy_in_a_wave_equals_transformers_generate_alone(name: str, adapters: list[str | None]) -> None:
    written(name)
    chosen = [adapters[number % len(adapters)] for number in range(len(SOURCES))]
    requests = [
        greedy(source, adapter=None if adapter is None else str(root() / adapter), max_tokens=6 + 3 * number)
        for number, (source, adapter) in enumerate(zip(SOURCES, chosen, strict=True))
    ]
    answers = Harness(name, "seq2seq").run(requests)
    expected = [
        reference(name, adapter, source, 6 + 3 * n)
        for n, (source, adapter) in enumerate(zip(SOURCES, chosen, strict=True))
    ]
    assert [answer.text for answer in answers] == expected
    assert len(set(expected)) > len(expected) // 2
    assert [answer.last["prompt_tokens"] for answer in answers] == [
        len(served(name, "seq2seq").tokenizer(source)["input_ids"]) for source in SOURCES
    ]


def test_later_requests_form_their_own_wave_beside_the_first() -> None:
    harness = Harness("t5", "seq2seq", max_rows=4)
    requests = [greedy(source, max_tokens=12) for source in SOURCES]
    alone = [harness.one(request).text for request in requests]
    for number, request in enumerate(requests):
        harness.handle({"id": str(number), **request})
        harness.process.step()
    while harness.process.busy:
        harness.process.step()
    texts = {str(number): "" for number in range(len(requests))}
    for message in harness.messages():
        texts[message["id"]] += message.get("text", "")
    assert list(texts.values()) == alone


def test_one_user_message_is_the_source() -> None:
    harness = Harness("t5", "seq2seq")
    asked = harness.one({**greedy(""), "prompt": {"messages": [{"role": "user", "content": "please help"}]}})
    assert asked.text == harness.one(greedy("please help")).text
    two = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    refused = harness.one({**greedy(""), "prompt": {"messages": two}})
    assert refused.last["code"] == "unsupported_parameter"


def test_a_cancelled_answer_leaves_its_wave() -> None:
    harness = Harness("t5", "seq2seq")
    harness.handle({"id": "a", **greedy("hello", max_tokens=200, logit_bias={"0": -100})})
    harness.handle({"id": "b", **greedy("the quick brown fox jumps", max_tokens=8)})
    harness.process.step()
    harness.handle({"id": "a", "op": "cancel"})
    while harness.process.busy:
        harness.process.step()
    messages = harness.messages()
    assert [m["type"] for m in messages if m["id"] == "a"][-1] == "cancelled"
    text = "".join(m.get("text", "") for m in messages if m["id"] == "b")
    assert text == Harness("t5", "seq2seq").one(greedy("the quick brown fox jumps", max_tokens=8)).text
