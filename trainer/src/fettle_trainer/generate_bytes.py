"""What bytes each token id stands for.

Text is put together from bytes, not from decoded tokens: one character may span several tokens, and the
concatenation of the pieces must be the whole text. Three ways of spelling a token are known:

    byte-level  GPT-2, Llama 3, Qwen, SmolLM: each character of the token is one byte, by a fixed table
    metaspace   SentencePiece (Llama 2, Gemma, T5, Marian): "▁" is a space, "<0x0A>" is one byte
    word-piece  BERT: "##x" goes on, "x" begins a new word
"""

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

Spelling = Literal["byte-level", "metaspace", "word-piece"]


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of the byte-level alphabet (GPT-2's `bytes_to_unicode`, reversed)."""
    spans = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [code for first, last in spans for code in range(ord(first), ord(last) + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return alphabet


def _decoder_types(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        entries = cast(dict[str, object], node)
        if isinstance(entries.get("type"), str):
            yield cast(str, entries["type"])
        for value in entries.values():
            yield from _decoder_types(value)
    elif isinstance(node, list):
        for value in cast(list[object], node):
            yield from _decoder_types(value)


def spelling_of(tokenizer: PreTrainedTokenizerBase) -> Spelling:
    """How this tokenizer spells its tokens; one without a Rust back end is SentencePiece."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "metaspace"
    types = set(_decoder_types(json.loads(backend.to_str()).get("decoder")))
    if "ByteLevel" in types:
        return "byte-level"
    return "word-piece" if "WordPiece" in types else "metaspace"


class TokenBytes:
    """Bytes of every token id. Special tokens are silent: they stand for no text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._spelling: Spelling = spelling_of(tokenizer)
        self._alphabet = byte_alphabet()
        added = cast(dict[int, Any], tokenizer.added_tokens_decoder)
        special = {int(token_id) for token_id in tokenizer.all_special_ids}
        self._added = {token_id: str(token.content) for token_id, token in added.items()}
        self._silent = special | {token_id for token_id, token in added.items() if token.special}
        self._known: dict[int, bytes] = {}

    @property
    def leading_space(self) -> bool:
        """True when the first word of a text is spelt with a space that is not part of the text."""
        return self._spelling != "byte-level"

    def is_silent(self, token_id: int) -> bool:
        return token_id in self._silent

    def text_bytes(self, token_id: int) -> bytes:
        """Bytes the token adds to the answer; none for a special token or an id beyond the vocabulary."""
        return b"" if token_id in self._silent else self.spelt_bytes(token_id)

    def spelt_bytes(self, token_id: int) -> bytes:
        """Bytes of the token's own name: as `text_bytes`, but a special token spells itself out."""
        known = self._known.get(token_id)
        if known is None:
            known = self._spell(token_id)
            self._known[token_id] = known
        return known

    def _spell(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return added.encode()
        token = cast(str | None, self._tokenizer.convert_ids_to_tokens(token_id)) if token_id >= 0 else None
        if token is None:
            return b""
        if self._spelling == "byte-level":
            return b"".join(
                bytes([self._alphabet[character]]) if character in self._alphabet else character.encode()
                for character in token
            )
        if self._spelling == "word-piece":
            return token[2:].encode() if token.startswith("##") else (" " + token).encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()

    @cached_property
    def by_first_byte(self) -> dict[int, list[int]]:
        """Ids of all tokens that add text, by their first byte."""
        buckets: dict[int, list[int]] = {}
        for token_id in range(len(self._tokenizer)):
            spelt = self.text_bytes(token_id)
            if spelt:
                buckets.setdefault(spelt[0], []).append(token_id)
        return buckets
