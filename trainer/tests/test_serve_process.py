"""The process itself: its pipes, its start and its end. Starting one takes seconds, so few are started."""

import time

from serve_client import ServeClient
from serve_harness import Harness, greedy, written

PROMPTS = ("hello", "the fox", "漢字")


def test_the_life_of_a_process_from_ready_to_the_end_of_stdin() -> None:
    client = ServeClient(written("llama"), "decoder")
    messages = client.messages()
    ready = next(messages)
    assert (ready["type"], ready["pid"], ready["context_length"]) == ("ready", client.process.pid, 512)
    assert ready["rss_bytes"] > 50 << 20

    # What comes over the pipe is what the engine says, and nothing else is ever printed there.
    answers = client.answers([{"id": str(number), **greedy(prompt)} for number, prompt in enumerate(PROMPTS)])
    expected = Harness("llama", "decoder").run([greedy(prompt) for prompt in PROMPTS])
    assert [answers[str(number)] for number in range(3)] == [answer.messages for answer in expected]

    # A line that is no request is answered, and so is the next one.
    assert client.process.stdin is not None
    client.process.stdin.write(b'{"id": broken\n[]\n\xff\n')
    client.process.stdin.flush()
    errors = [next(messages) for _ in range(3)]
    assert [(error["id"], error["code"]) for error in errors] == [(None, "invalid_request")] * 3
    assert client.answer(greedy("hello"))[-1]["type"] == "end"

    # When nobody reads any more it ends in the middle of an answer.
    client.send({"id": "long", **greedy("the fox", max_tokens=500, logit_bias={"3": -100})})
    assert next(messages)["type"] == "start"
    begun = time.monotonic()
    assert client.close() == 0
    assert time.monotonic() - begun < 10
