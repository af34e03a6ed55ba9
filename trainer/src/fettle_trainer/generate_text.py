"""From token bytes to text that may be shown.

A character leaves only when all its bytes have come. Text that could still become a stop string is held
back until it cannot, so that no part of a stop string is ever shown. A token's log-probability leaves with
the last character of its text.
"""

import codecs
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token and its natural-log probability; None for the first token of an echo: nothing precedes it."""

    token: str
    bytes: list[int]
    logprob: float | None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    chosen: Alternative
    top: list[Alternative]


@dataclass(frozen=True, slots=True)
class Piece:
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])

    def __bool__(self) -> bool:
        return bool(self.text or self.logprobs)

    def __add__(self, following: "Piece") -> "Piece":
        return Piece(self.text + following.text, [*self.logprobs, *following.logprobs])


@dataclass(frozen=True, slots=True)
class _Held:
    start: int
    end: int
    entry: TokenLogprob


class TextStream:
    """Text of one answer. Offsets count characters of the text so far."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self._released = 0
        self._held: deque[_Held] = deque()
        self.stopped = False

    def push(self, token_bytes: bytes, entry: TokenLogprob | None) -> Piece:
        """Adds one token; the piece is what may be shown now. After a stop string `stopped` is true."""
        return self._add(self._decoder.decode(token_bytes), entry)

    def finish(self) -> Piece:
        """What is left: nothing more comes. An unfinished character shows as U+FFFD."""
        last = self._add(self._decoder.decode(b"", final=True), None)
        if self.stopped:
            return last
        rest = self._release(len(self._pending))
        left = [held.entry for held in self._held]
        self._held.clear()
        return last + rest + Piece(logprobs=left)

    def _add(self, text: str, entry: TokenLogprob | None) -> Piece:
        start = self._released + len(self._pending)
        self._pending += text
        if entry is not None:
            self._held.append(_Held(start, start + len(text), entry))
        cut = self._first_stop()
        if cut is None:
            return self._release(len(self._pending) - self._length_at_risk())
        self.stopped = True
        shown = self._release(cut)
        begun = [held.entry for held in self._held if held.start < self._released]
        self._held.clear()
        self._pending = ""
        return shown + Piece(logprobs=begun)

    def _first_stop(self) -> int | None:
        found = [at for at in (self._pending.find(text) for text in self._stop) if at >= 0]
        return min(found) if found else None

    def _length_at_risk(self) -> int:
        """Length of the longest end of the pending text that a stop string begins with."""
        longest = 0
        for text in self._stop:
            for length in range(min(len(text) - 1, len(self._pending)), longest, -1):
                if self._pending.endswith(text[:length]):
                    longest = length
                    break
        return longest

    def _release(self, length: int) -> Piece:
        text, self._pending = self._pending[:length], self._pending[length:]
        self._released += length
        entries: list[TokenLogprob] = []
        # A token that ended no character (start == end) waits for the one that completes it.
        while (
            self._held
            and self._held[0].end <= self._released
            and (text or self._held[0].start < self._held[0].end)
        ):
            entries.append(self._held.popleft().entry)
        return Piece(text, entries)
