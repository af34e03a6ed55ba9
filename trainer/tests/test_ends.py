"""A tuned model stops by itself: twenty answers of twenty end with the end token, chosen or drawn."""

from pathlib import Path
from typing import Any

import pytest
from families import make_family
from serve_harness import Answer, Harness, greedy
from tiny import CORPUS, make_decoder, make_seq2seq, make_spec, write_rows
from torch import Tensor
from training import of_type, train

from fettle_trainer.tasks import chat
from fettle_trainer.tasks.objective import Feed

ANSWERS = 20
WORDS = " ".join(CORPUS[:2]).split()
QUESTIONS = [f"{WORDS[number]} {WORDS[number + 1]} {number}" for number in range(ANSWERS)]
# One to five words.
EXPECTED = [" ".join(WORDS[number : number + number % 5 + 1]) for number in range(ANSWERS)]
FAMILIES = {"llama": "decoder", "gpt2": "decoder", "t5": "seq2seq"}


def tuned(folder: Path, kind: str) -> Path:
    """The artefact of a model that has its rows by heart. The GPT-2 has no pad token and no template."""
    if kind == "llama":
        rows: list[dict[str, Any]] = [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
            for asked, said in zip(QUESTIONS, EXPECTED, strict=True)
        ]
        model = make_decoder(folder / "model", kind)
    else:
        rows = [
            {"prompt": asked, "completion": said} for asked, said in zip(QUESTIONS, EXPECTED, strict=True)
        ]
        model = (
            make_family(folder / "model", kind) if kind == "gpt2" else make_seq2seq(folder / "model", kind)
        )
    spec = make_spec(
        model,
        write_rows(folder / "rows.jsonl", rows),
        folder / "out",
        task="seq2seq" if kind == "t5" else "chat",
        method="full",
        base_model__family=FAMILIES[kind],
        hyperparameters__dropout=0.0,
        hyperparameters__per_device_train_batch_size=4,
        hyperparameters__gradient_accumulation_steps=1,
        hyperparameters__num_train_epochs=50,
        hyperparameters__weight_decay=0.0,
    )
    code, events = train(spec)
    assert code == 0, events[-1]
    assert of_type(events, "step")[-1]["train_loss"] < 0.02
    return folder / "out" / "artefact"


def asked(artefact: Path, kind: str, **changes: Any) -> list[Answer]:
    messages = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    texts = [{"text": question} for question in QUESTIONS]
    requests = [
        {**greedy(""), "prompt": prompt, "max_tokens": 48, **changes}
        for prompt in (messages if kind == "llama" else texts)
    ]
    return Harness(artefact, FAMILIES[kind]).run(requests)


def num_stopped(answers: list[Answer]) -> int:
    return sum(answer.last["finish_reason"] == "stop" for answer in answers)


@pytest.mark.parametrize("kind", ["llama", "gpt2", pytest.param("t5", marks=pytest.mark.slow)])
def test_twenty_answers_of_twenty_stop_by_the_end_token(tmp_path: Path, kind: str) -> None:
    artefact = tuned(tmp_path, kind)
    answers = asked(artefact, kind)
    assert num_stopped(answers) == ANSWERS
    assert [answer.text for answer in answers] == EXPECTED
    for seed in (1, 2):
        drawn = asked(artefact, kind, temperature=1.0, seed=seed)
        assert num_stopped(drawn) == ANSWERS


def test_a_model_that_did_not_learn_its_ends_goes_on_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake this file looks for: ends that are masked with the padding."""
    plain = chat.answer_feed

    def without_ends(ids: Tensor, learn: Tensor) -> Feed:
        feed = plain(ids, learn)
        kept = feed.targets != 3
        return Feed(feed.ids, feed.places[kept], feed.targets[kept])

    monkeypatch.setattr(chat, "answer_feed", without_ends)
    assert num_stopped(asked(tuned(tmp_path, "llama"), "llama")) < ANSWERS // 2
