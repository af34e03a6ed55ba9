"""The process itself: its pipes, its start and its end."""

import json
import os
import signal
import time
from pathlib import Path

from serve_client import DEADLINE_SECONDS, ServeClient
from serve_harness import Harness, greedy, written


def test_answers_come_over_the_pipe_and_closing_stdin_ends_the_process() -> None:
    client = ServeClient(written("llama"), "decoder")
    ready = next(client.messages())
    assert ready["type"] == "ready"
    assert ready["pid"] == client.process.pid
    assert ready["context_length"] == 512
    assert ready["rss_bytes"] > 50 << 20
    requests = [
        {"id": str(number), **greedy(prompt)} for number, prompt in enumerate(("hello", "the fox", "漢字"))
    ]
    answers = client.answers(requests)
    expected = Harness("llama", "decoder").run([greedy(prompt) for prompt in ("hello", "the fox", "漢字")])
    assert [answers[str(number)] for number in range(3)] == [answer.messages for answer in expected]
    assert client.close() == 0


def test_a_line_that_is_no_request_is_answered_and_the_next_one_too() -> None:
    client = ServeClient(written("llama"), "decoder")
    messages = client.messages()
    next(messages)
    assert client.process.stdin is not None
    client.process.stdin.write(b'{"id": broken\n[]\n\xff\n')
    client.process.stdin.flush()
    errors = [next(messages) for _ in range(3)]
    assert [(error["id"], error["code"]) for error in errors] == [(None, "invalid_request")] * 3
    assert client.answer(greedy("hello"))[-1]["type"] == "end"
    client.close()


def test_a_model_that_cannot_be_loaded_is_told_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    client = ServeClient(tmp_path, "decoder")
    messages = list(client.messages())
    assert [message["type"] for message in messages] == ["fatal"]
    assert messages[0]["code"] == "inference_failed"
    assert client.process.wait(timeout=DEADLINE_SECONDS) == 1


def test_the_process_ends_in_the_middle_of_an_answer_when_its_reader_is_gone() -> None:
    client = ServeClient(written("llama"), "decoder")
    messages = client.messages()
    next(messages)
    client.send({"id": "long", **greedy("the fox", max_tokens=500, logit_bias={"3": -100})})
    assert next(messages)["type"] == "start"
    begun = time.monotonic()
    assert client.close() == 0
    assert time.monotonic() - begun < 10


def test_a_killed_process_closes_its_pipe() -> None:
    client = ServeClient(written("llama"), "decoder")
    messages = client.messages()
    next(messages)
    client.send({"id": "long", **greedy("the fox", max_tokens=500, logit_bias={"3": -100})})
    next(messages)
    os.kill(client.process.pid, signal.SIGKILL)
    left = list(messages)
    assert all(message["type"] == "delta" for message in left)
    assert client.process.wait(timeout=DEADLINE_SECONDS) == -signal.SIGKILL
