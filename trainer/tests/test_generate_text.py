"""Text that leaves: whole characters, never a part of a stop string, log-probabilities with their text."""

import random

import pytest

from fettle_trainer.generate_text import Alternative, Piece, TextStream, TokenLogprob


def entry(name: str) -> TokenLogprob:
    return TokenLogprob(Alternative(name, list(name.encode()), -1.0), [])


def streamed(tokens: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[Piece], TextStream]:
    stream = TextStream(stop)
    pieces: list[Piece] = []
    for number, token in enumerate(tokens):
        pieces.append(stream.push(token, entry(str(number))))
        if stream.stopped:
            return pieces, stream
    pieces.append(stream.finish())
    return pieces, stream


def test_a_character_leaves_only_when_all_its_bytes_have_come() -> None:
    pieces, _ = streamed([bytes([byte]) for byte in "a🦊é".encode()])
    assert [piece.text for piece in pieces] == ["a", "", "", "", "🦊", "", "é", ""]


def test_an_unfinished_character_at_the_end_shows_as_every_decoder_shows_it() -> None:
    pieces, _ = streamed([b"ok ", "🦊".encode()[:2]])
    assert "".join(piece.text for piece in pieces) == b"ok \xf0\x9f".decode("utf-8", "replace")


@pytest.mark.parametrize("seed", range(40))
def test_no_part_of_a_stop_string_is_ever_shown(seed: int) -> None:
    rng = random.Random(seed)
    stop = tuple(
        "".join(rng.choice("ab\n") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 3))
    )
    text = "".join(rng.choice("ab\nc") for _ in range(30))
    tokens: list[bytes] = []
    position = 0
    while position < len(text):
        length = rng.randint(1, 4)
        tokens.append(text[position : position + length].encode())
        position += length
    pieces, stream = streamed(tokens, stop)
    cuts = [text.find(word) for word in stop if word in text]
    expected = text[: min(cuts)] if cuts else text
    shown = ""
    for piece in pieces:
        shown += piece.text
        assert expected.startswith(shown), "showed text that a stop string takes back"
    assert shown == expected
    assert stream.stopped == bool(cuts)


def test_text_that_may_begin_a_stop_string_waits_and_then_leaves() -> None:
    pieces, stream = streamed([b"x EN", b"DING", b" y"], stop=("END.",))
    assert [piece.text for piece in pieces] == ["x ", "ENDING", " y", ""]
    assert not stream.stopped


def test_each_logprob_leaves_once_and_not_before_its_text() -> None:
    pieces, _ = streamed([b"x EN", b"DING", b"\xc3", b"\xa9!"], stop=("END.",))
    assert [len(piece.logprobs) for piece in pieces] == [0, 2, 0, 2, 0]


def test_logprobs_of_the_stop_string_are_not_reported() -> None:
    pieces, _ = streamed([b"one ", b"STOP"], stop=("STOP",))
    assert [item.chosen.token for piece in pieces for item in piece.logprobs] == ["0"]
