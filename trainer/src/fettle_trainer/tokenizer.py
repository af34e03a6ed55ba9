"""Text to token ids without letting text become control tokens.

Names: a *control token* is an added token the tokenizer marks special (`<|im_end|>`, `</s>`, `[SEP]`).
A *guard* is a Unicode noncharacter put inside a literal that would otherwise be read as such a token; the
encoder cuts the text there and leaves the guard out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

# Noncharacters: valid in a Python string, never assigned a meaning by Unicode, so no tokenizer knows them.
_GUARD_CHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class AddedToken(Protocol):
    content: str
    special: bool


class RawTokenizer(Protocol):
    """What we use of a transformers tokenizer."""

    chat_template: str | dict[str, str] | None
    eos_token_id: int | None
    bos_token_id: int | None
    pad_token_id: int | None
    eos_token: str | None
    is_fast: bool
    added_tokens_decoder: dict[int, AddedToken]
    all_special_ids: list[int]

    def __call__(self, text: str, text_pair: str | None = None, **options: Any) -> Mapping[str, Any]: ...
    def __len__(self) -> int: ...
    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]], **options: Any) -> Any: ...
    def decode(self, token_ids: Sequence[int], **options: Any) -> str: ...
    def save_pretrained(self, save_directory: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """`starts[i]` is the character where token i begins in the encoded text."""

    ids: list[int]
    starts: list[int]


@dataclass(frozen=True, slots=True)
class Word:
    """`token`: its first. `start`, `end`: characters, without space around."""

    token: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Window:
    """A question and a part of a text. `spans`: characters of the text each token stands for; None where it
    is none of the text's."""

    ids: list[int]
    types: list[int]
    spans: list[tuple[int, int] | None]


class SafeTokenizer:
    """Encodes rendered templates (control tokens of the template count) and plain text (none counts)."""

    def __init__(self, raw: RawTokenizer) -> None:
        self.raw = raw
        added = raw.added_tokens_decoder
        special = set(raw.all_special_ids)
        self._added = {token.content: (token_id, token) for token_id, token in added.items() if token.content}
        self._control = {
            content: token_id
            for content, (token_id, token) in self._added.items()
            if token.special or token_id in special
        }
        template = raw.chat_template if isinstance(raw.chat_template, str) else ""
        self._template_literals = [content for content in self._added if content in template]
        self._control_pattern = _pattern(self._control)
        self._untrusted_pattern = _pattern([*self._control, *self._template_literals])
        self._content_of = {token_id: content for content, token_id in self._control.items()}
        plain = cast("list[int]", raw("", add_special_tokens=True)["input_ids"])
        bos = raw.bos_token_id
        self.adds_bos = bos is not None and plain[:1] == [bos]

    @property
    def control_ids(self) -> frozenset[int]:
        return frozenset(self._content_of)

    def guard_character(self, texts: Sequence[str]) -> str:
        """A guard that occurs in none of `texts`."""
        for character in _GUARD_CHARACTERS:
            if not any(character in text for text in texts):
                return character
        raise ValueError("The text holds all 32 Unicode noncharacters U+FDD0 to U+FDEF: remove one of them.")

    def guarded(self, text: str, guard: str, *, trusted: bool) -> str:
        """`text` with a guard in each literal that would become a control token.

        Untrusted text (everything but what an assistant said) also loses the markers that the chat template
        itself writes, special or not: `<tool_response>` in a user's message is text.
        """
        pattern = self._control_pattern if trusted else self._untrusted_pattern
        if pattern is None:
            return text
        return pattern.sub(lambda match: match[0][0] + guard + match[0][1:], text)

    def encode(self, text: str, guard: str | None = None) -> Encoded:
        """Ids of a rendered template; what the tokenizer itself gives when no guard is in the text."""
        if guard is None or guard not in text:
            whole = self._encode_piece(text, parse_control=True)
            if self._is_literal(text, whole):
                return whole
        pieces: list[Encoded] = []
        for start, piece in _cut(text, self._control_pattern, guard):
            if piece in self._control:
                pieces.append(Encoded([self._control[piece]], [start]))
            elif piece != guard:
                part = self._encode_piece(piece, parse_control=False)
                pieces.append(Encoded(part.ids, [start + offset for offset in part.starts]))
        return Encoded([i for part in pieces for i in part.ids], [s for part in pieces for s in part.starts])

    def last_control(self, text: str) -> int | None:
        """Where the last control token written in `text` ends."""
        matches = list(self._control_pattern.finditer(text)) if self._control_pattern else []
        return matches[-1].end() if matches else None

    def encode_plain(self, text: str, text_pair: str | None = None, *, target: bool = False) -> list[int]:
        """Ids of plain text with the control tokens the tokenizer puts around it ([CLS] ... [SEP])."""
        if target:
            # Another vocabulary (Marian), another language code (mBART); elsewhere the same as a source.
            encoded = self.raw("", text_target=text, add_special_tokens=True, split_special_tokens=True)
            return cast("list[int]", encoded["labels"])
        encoded = self.raw(text, text_pair, add_special_tokens=True, split_special_tokens=True)
        return cast("list[int]", encoded["input_ids"])

    def encode_pair(
        self, text: str, text_pair: str | None, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids as `encode_plain`, cut to `max_length`, and token types when there are two texts."""
        encoded = self.raw(
            text,
            text_pair,
            add_special_tokens=True,
            split_special_tokens=True,
            truncation=max_length is not None,
            max_length=max_length,
            return_token_type_ids=text_pair is not None,
            verbose=False,
        )
        types = cast("list[int]", encoded.get("token_type_ids") or [])
        return cast("list[int]", encoded["input_ids"]), types

    def encode_words(self, text: str, max_length: int) -> tuple[list[int], list[Word], bool]:
        """Ids as `encode_plain`, cut to `max_length`; where each word begins; whether words were cut off.
        Needs a fast tokenizer."""
        options: dict[str, Any] = {"add_special_tokens": True, "split_special_tokens": True, "verbose": False}
        options["return_offsets_mapping"] = True
        encoded: Any = self.raw(text, truncation=True, max_length=max_length, **options)
        words: dict[int, Word] = {}
        offsets = cast("list[tuple[int, int]]", encoded["offset_mapping"])
        for token, word in enumerate(cast("list[int | None]", encoded.word_ids(0))):
            if word is None:
                continue
            start, end = _without_space(text, offsets[token])
            known = words.get(word)
            if known is not None:
                words[word] = Word(known.token, known.start, max(known.end, end))
            elif start < end:
                words[word] = Word(token, start, end)
        whole = self.raw(text, **options)
        ids = cast("list[int]", encoded["input_ids"])
        return ids, list(words.values()), len(whole["input_ids"]) > len(ids)

    def encode_windows(self, question: str, context: str, max_length: int) -> list[Window]:
        """The question before each part of the context; parts overlap by a third of what fits. Raises
        ValueError where the question leaves no room. Needs a fast tokenizer."""
        asked = len(self.encode_plain(question, ""))
        room = max_length - asked
        if room < 4:
            raise ValueError(f"The question has {asked} tokens of max_length {max_length}.")
        encoded: Any = self.raw(
            question,
            context,
            add_special_tokens=True,
            split_special_tokens=True,
            truncation="only_second",
            max_length=max_length,
            stride=room // 3,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        windows: list[Window] = []
        kinds = encoded.get("token_type_ids")
        for index, ids in enumerate(cast("list[list[int]]", encoded["input_ids"])):
            sides = cast("list[int | None]", encoded.sequence_ids(index))
            offsets = cast("list[tuple[int, int]]", encoded["offset_mapping"][index])
            spans = [
                _without_space(context, span) if side == 1 else None
                for side, span in zip(sides, offsets, strict=True)
            ]
            windows.append(Window(ids, list(kinds[index]) if kinds is not None else [], spans))
        return windows

    def encode_bare(self, text: str) -> list[int]:
        """Ids of plain text, nothing put around it."""
        return self._encode_piece(text, parse_control=False, offsets=False).ids

    def _encode_piece(self, text: str, *, parse_control: bool, offsets: bool = True) -> Encoded:
        wants_offsets = offsets and self.raw.is_fast
        encoded = self.raw(
            text,
            add_special_tokens=False,
            split_special_tokens=not parse_control,
            return_offsets_mapping=wants_offsets,
            return_attention_mask=False,
            verbose=False,
        )
        ids = cast("list[int]", encoded["input_ids"])
        if not wants_offsets:
            return Encoded(ids, [])
        mapping = cast("list[tuple[int, int]]", encoded["offset_mapping"])
        return Encoded(ids, [start for start, _ in mapping])

    def _is_literal(self, text: str, encoded: Encoded) -> bool:
        """False when a control token stands where the text only looks like it (full-width letters, NFKC)."""
        for token_id, start in zip(encoded.ids, encoded.starts, strict=False):
            content = self._content_of.get(token_id)
            if content is not None and content not in text[start : start + len(content) + 8]:
                return False
        return True


def decoder_start(model: Any, raw: RawTokenizer) -> int | None:
    """What an encoder-decoder begins its answer with: as its configs say, else the target language."""
    for config in (model.generation_config, model.config):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    language = getattr(raw, "tgt_lang", None)
    return None if language is None else int(cast("Any", raw).convert_tokens_to_ids(language))


def _without_space(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """Some tokenizers count the space before a word as a part of it."""
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _pattern(literals: Sequence[str] | Mapping[str, int]) -> re.Pattern[str] | None:
    longest_first = sorted(set(literals), key=lambda literal: (-len(literal), literal))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _cut(text: str, control: re.Pattern[str] | None, guard: str | None) -> list[tuple[int, str]]:
    """Pieces of `text` with their start: control literals and guards stand alone, nothing is lost."""
    alternatives = [re.escape(guard)] if guard is not None else []
    if control is not None:
        alternatives.append(control.pattern)
    pieces: list[tuple[int, str]] = []
    position = 0
    for match in re.finditer("|".join(alternatives), text) if alternatives else ():
        if match.start() > position:
            pieces.append((position, text[position : match.start()]))
        pieces.append((match.start(), match[0]))
        position = match.end()
    if position < len(text):
        pieces.append((position, text[position:]))
    return pieces
