"""One request's answer as it grows: `take` a row of logits, give back what may be shown.

    created -> (echo) -> take, take, ... -> finish_reason is set

`finish_reason` "stop": a stop token, a stop string, or the JSON object is whole. "length": `max_tokens` came
first; a JSON object is then closed with the fewest bytes while there is room for them, so that it parses.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .generate_bytes import TokenBytes
from .generate_json import JsonState, advance, advance_all, closing
from .generate_sampling import Gate, Sampler, SamplingOptions, first_token_logprob, token_logprob
from .generate_text import Piece, TextStream

FinishReason = Literal["stop", "length"]
# Masks kept, V bytes each: the states inside strings and after values come again and again.
MASKS_KEPT = 64


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """`max_tokens` counts the stop token too. `logprobs`: alternatives a token, None for no report."""

    max_tokens: int
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    json_mode: bool = False
    echo: bool = False


@dataclass(frozen=True, slots=True)
class Voice:
    """What a model's tokens say, and which of them end an answer."""

    vocabulary: TokenBytes
    stop_ids: frozenset[int]
    masks: dict[tuple[JsonState, int], Tensor] = field(default_factory=dict[tuple[JsonState, int], Tensor])


class Generation:
    """`prompt_ids`: the decoder's input; `next_token`: what to feed the model with next."""

    def __init__(self, prompt_ids: list[int], options: GenerationOptions, voice: Voice) -> None:
        self.prompt_ids = prompt_ids
        self.options = options
        self.finish_reason: FinishReason | None = None
        self.num_completion_tokens = 0
        self.next_token = -1
        self._voice = voice
        self._sampler = Sampler(options.sampling)
        self._text = TextStream(options.stop)
        self._json: _JsonGate | None = _JsonGate(voice) if options.json_mode else None
        self._strip_space = False

    def strip_leading_space(self) -> None:
        """The answer is a text of its own (seq2seq): a space spelt before its first word is no part of it."""
        self._strip_space = self._voice.vocabulary.leading_space

    def echo(self, logits_TV: Tensor | None) -> Piece:
        """The prompt itself. `logits_TV`: logits at every position when log-probabilities are asked for."""
        text = TextStream(())
        vocabulary = self._voice.vocabulary
        pieces: list[Piece] = []
        for position, token_id in enumerate(self.prompt_ids):
            entry = None
            if logits_TV is not None and position == 0:
                entry = first_token_logprob(token_id, vocabulary)
            elif logits_TV is not None:
                entry = token_logprob(
                    logits_TV[position - 1],
                    token_id,
                    num_top=self.options.logprobs or 0,
                    vocabulary=vocabulary,
                )
            pieces.append(text.push(vocabulary.text_bytes(token_id), entry))
        pieces.append(text.finish())
        return sum(pieces, start=Piece())

    def take(self, logits_V: Tensor) -> Piece:
        """Chooses the next token from the model's logits and returns the text that may be shown now."""
        remaining = self.options.max_tokens - self.num_completion_tokens
        if remaining <= 0:
            return self._end("length")
        logits_V = logits_V.detach().to("cpu", torch.float32)
        if not torch.isfinite(logits_V.max()):
            raise RuntimeError(
                "the model answered NaN or infinity: its weights or its adapter are broken, train it anew"
            )
        gate = self._json.gate(remaining) if self._json is not None else None
        token_id = self._sampler.choose(logits_V, gate)
        if token_id is None:
            return self._end("length")
        self.next_token = token_id
        self.num_completion_tokens += 1
        if token_id in self._voice.stop_ids:
            return self._end("stop")
        piece = self._show(token_id, logits_V)
        if self._text.stopped:
            self.finish_reason = "stop"
        elif self._json is not None and self._json.take(token_id):
            return piece + self._end("length" if self._json.cut else "stop")
        elif remaining == 1:
            return piece + self._end("length")
        return piece

    def _show(self, token_id: int, logits_V: Tensor) -> Piece:
        entry = None
        if self.options.logprobs is not None:
            entry = token_logprob(
                logits_V, token_id, num_top=self.options.logprobs, vocabulary=self._voice.vocabulary
            )
        spelt = self._voice.vocabulary.text_bytes(token_id)
        if self._strip_space and spelt:
            self._strip_space = False
            spelt = spelt.removeprefix(b" ")
        return self._text.push(spelt, entry)

    def _end(self, reason: FinishReason) -> Piece:
        last = self._text.finish()
        # The last bytes can still complete a stop string.
        self.finish_reason = "stop" if self._text.stopped else reason
        return last


class _JsonGate:
    """Follows the object; says which tokens keep it one. `cut`: the limit refused what the model wanted."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._state = JsonState()
        self.cut = False

    def gate(self, remaining: int) -> Gate:
        """With `remaining` tokens left: the shortest end of the object must always fit, one byte a token."""
        # Too short a limit for any object: what comes is the beginning of one.
        room = remaining - 1 if len(closing(self._state)) <= remaining else None
        return Gate(
            lambda token_id: self._allows(token_id, room),
            (self._object_mask, lambda size: self._built_mask(size, room)),
        )

    def take(self, token_id: int) -> bool:
        """Moves on; true when the object is whole."""
        state = self._after(token_id)
        if state is None:
            raise RuntimeError(f"token {token_id} was taken though it breaks the JSON object")
        self._state = state
        return state.done

    def _after(self, token_id: int) -> JsonState | None:
        spelt = self._voice.vocabulary.text_bytes(token_id)
        return advance_all(self._state, spelt) if spelt and token_id not in self._voice.stop_ids else None

    def _allows(self, token_id: int, room: int | None) -> bool:
        state = self._after(token_id)
        if state is not None and room is not None and len(closing(state)) > room:
            self.cut = True
            return False
        return state is not None

    def _object_mask(self, size: int) -> Tensor:
        masks = self._voice.masks
        key = (self._state, size)
        if key not in masks:
            if len(masks) >= MASKS_KEPT:
                masks.pop(next(iter(masks)))
            masks[key] = self._built_mask(size, None)
        return masks[key]

    def _built_mask(self, size: int, room: int | None) -> Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        for first_byte, token_ids in self._voice.vocabulary.by_first_byte.items():
            if advance(self._state, first_byte) is not None:
                allowed = [
                    token_id for token_id in token_ids if token_id < size and self._allows(token_id, room)
                ]
                mask[allowed] = True
        return mask
