"""The automaton of JSON mode, against Python's own parser."""

import json
import random

import pytest

from fettle_trainer.generate_json import JsonState, advance, advance_all, closing

WHOLE = [
    "{}",
    ' \n{ "a" : [ 1 , -2.5e+3 , 0, 0.1, 10, 1E5 ] , "b":{"c":null,"d":[true,false,{}]} }',
    '{"e":"\\u00e9\\n\\"é🦊"}',
    '{"a":[[],{},""],"":{"":0}}',
]
BROKEN = [
    "[1]", '"a"', "1", "{a:1}", "{'a':1}", '{"a"}', '{"a":}', '{"a":1,}', '{"a":[1,]}',
    '{"a":01}', '{"a":1.}',
    '{"a":.5}', '{"a":+1}', '{"a":tru}', '{"a":"\\x"}', '{"a":"\\u12g4"}', '{"a":1e}', '{"a":-}', '{"a":1 2}',
    '{"a":"\n"}', "{}}", "{} {}", '{"a":1}x', '{"a":]', '{"a":NaN}',
]  # fmt: skip


@pytest.mark.parametrize("text", WHOLE)
def test_a_whole_object_is_taken_and_ends_the_answer(text: str) -> None:
    json.loads(text)
    state = advance_all(JsonState(), text.encode())
    assert state is not None
    assert state.done


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_json_object_is_refused(text: str) -> None:
    state = advance_all(JsonState(), text.encode())
    assert state is None or not state.done


@pytest.mark.parametrize("seed", range(60))
def test_every_walk_can_be_closed_into_text_that_parses(seed: int) -> None:
    rng = random.Random(seed)
    state, text = JsonState(), b""
    # Structural bytes come often, so that walks get deep and leave strings again.
    alphabet = b'{}[]:,"""\\ \n-+.eE0123456789truefalsn' + bytes(range(0x20, 0x7F)) + "é🦊".encode()
    for _ in range(rng.randint(1, 120)):
        allowed = [byte for byte in alphabet if advance(state, byte) is not None]
        byte = rng.choice(allowed)
        following = advance(state, byte)
        assert following is not None
        assert len(closing(state)) <= len(closing(following)) + 1, (
            "one byte shortened the end by more than itself"
        )
        state, text = following, text + bytes([byte])
        closed = text + closing(state)
        assert isinstance(json.loads(closed.decode("utf-8", "replace")), dict)
        if state.done:
            break


def test_closing_is_itself_always_allowed_byte_by_byte() -> None:
    state: JsonState | None = advance_all(JsonState(), b'{"a":[{"b":"x\\u1')
    assert state is not None
    for byte in closing(state):
        state = advance(state, byte)
        assert state is not None
    assert state.done


@pytest.mark.parametrize("filler", [b" " * 100, b'{"a":' + b"1" * 100, b'{"a":' * 100, b'{"a":' + b"[" * 100])
def test_runs_that_would_never_end_are_refused(filler: bytes) -> None:
    assert advance_all(JsonState(), filler) is None
