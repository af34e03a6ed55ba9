"""What a model is asked when serving is, byte for byte, what it was shown when training."""

from typing import Any

import pytest
from serve_folders import CHATML
from serve_harness import Harness, greedy, served, written
from transformers import PreTrainedTokenizerFast

from fettle_trainer.prompt import DEFAULT_TEMPLATE, PromptEncoder
from fettle_trainer.serve_prompts import PromptWriter
from fettle_trainer.serve_requests import MessagesPrompt, TextPrompt

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hi there."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Grüße\n\n🦊 <|im_end|> "},
        {"role": "assistant", "content": "漢字"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": " and again "},
    ],
]
LLAMA_2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ '<<SYS>>' + message['content'] + '<</SYS>>' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["one-turn", "two-turns"])
@pytest.mark.parametrize(
    ("name", "template"),
    [("gpt2", None), ("llama", CHATML), ("llama", LLAMA_2)],
    ids=["gpt2", "chatml", "llama2"],
)
def test_the_served_prompt_is_the_beginning_of_the_training_row(
    name: str, template: str | None, conversation: list[dict[str, Any]]
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(written(name)))
    tokenizer.chat_template = template or DEFAULT_TEMPLATE
    if template == LLAMA_2:
        tokenizer.bos_token = "<|endoftext|>"
    model = served(name, "decoder")
    asked = PromptWriter(type(model)(**{**fields(model), "tokenizer": tokenizer}))
    training = PromptEncoder(tokenizer)  # pyright: ignore[reportArgumentType]
    for turn, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        [row] = training.chat_sequences(conversation[: turn + 1])
        prompt = asked.for_generation(MessagesPrompt(conversation[:turn], None))
        assert row.ids[: len(prompt)] == prompt
        assert row.learn[len(prompt)], "the model learns the very next token"
        learnt_before = [index for index, learn in enumerate(row.learn[: len(prompt)]) if learn]
        assert len(row.ids) > len(prompt)
        if turn == 1:
            assert not learnt_before


def fields(model: Any) -> dict[str, Any]:
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def test_plain_prompts_begin_as_completion_rows_do() -> None:
    model = served("gpt2", "decoder")
    training = PromptEncoder(model.tokenizer)  # pyright: ignore[reportArgumentType]
    prompt = PromptWriter(model).for_generation(TextPrompt("my parcel has"))
    row = training.completion_sequence("my parcel has", " not come")
    assert row.ids[: len(prompt)] == prompt
    assert row.learn == [False] * len(prompt) + [True] * (len(row.ids) - len(prompt))


def test_sources_and_texts_are_encoded_as_in_training() -> None:
    seq2seq, encoder = served("t5", "seq2seq"), served("bert", "encoder")
    training = PromptEncoder(seq2seq.tokenizer)  # pyright: ignore[reportArgumentType]
    assert PromptWriter(seq2seq).for_generation(TextPrompt("help")) == training.seq2seq_source("help")
    training = PromptEncoder(encoder.tokenizer)  # pyright: ignore[reportArgumentType]
    long = "the quick brown fox " * 9
    assert (
        PromptWriter(encoder).for_classification(long, 20).ids
        == training.classification_text(long, None, 20).ids
    )
    assert PromptWriter(encoder).for_embedding("help") == training.classification_ids("help")


def test_the_process_counts_the_tokens_of_the_training_prompt() -> None:
    messages = CONVERSATIONS[1][:4]
    answer = Harness("llama", "decoder").one({**greedy("", max_tokens=1), "prompt": {"messages": messages}})
    training = PromptEncoder(served("llama", "decoder").tokenizer)  # pyright: ignore[reportArgumentType]
    assert answer.messages[0] == {
        "type": "start",
        "id": "0",
        "prompt_tokens": len(training.generation_prompt(messages)),
    }
