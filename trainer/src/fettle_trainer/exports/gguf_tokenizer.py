"""A tokenizer as GGUF says it: tokens with their types, merges or scores, and its way to cut text by name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from gguf import TokenType

from ..prompt import PromptEncoder
from .refusal import not_possible

# How text is cut before merging: llama.cpp knows these by name alone. Digits are what differs.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {_WORDS + r"\p{N}" + _REST: "qwen2", _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe"}
_SPACE = "▁"


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """`model`: "gpt2" (bytes, by merges) or "llama" (SentencePiece, by scores). `pre`: how text is cut."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list[str])
    scores: list[float] = field(default_factory=list[float])
    adds_space: bool = False


def gguf_tokenizer(prompts: PromptEncoder, vocab_size: int) -> GgufTokenizer:
    """`vocab_size`: rows of the embedding. Raises TrainFailure (`export_not_possible`)."""
    backend = getattr(prompts.raw, "backend_tokenizer", None)
    if backend is None:
        raise not_possible("gguf", "its tokenizer has no tokenizer.json")
    told = cast("dict[str, Any]", json.loads(backend.to_str()))
    model = cast("dict[str, Any]", told["model"])
    if model["type"] != "BPE":
        raise not_possible("gguf", f"its tokenizer is of type {model['type']}, and only BPE is written")
    tokens, types = _tokens(told, vocab_size)
    merges = [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]
    ]
    if any(part["type"] == "ByteLevel" for part in _parts(told["pre_tokenizer"], "pretokenizers")):
        _check_bytes(told)
        return GgufTokenizer("gpt2", _pre(told), tokens, types, merges=[f"{a} {b}" for a, b in merges])
    if not model.get("byte_fallback"):
        raise not_possible("gguf", "its tokenizer works neither on bytes nor falls back to them")
    ranks: dict[str, int] = {}
    for rank, (first, second) in enumerate(merges):
        ranks.setdefault(first + second, rank)
    # SentencePiece merges the pair of the highest score: the first merge has it.
    scores = [-float(ranks[token]) if token in ranks else 0.0 for token in tokens]
    return GgufTokenizer("llama", "default", tokens, types, scores=scores, adds_space=_adds_space(told))


def _tokens(told: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    vocab = cast("dict[str, int]", told["model"]["vocab"])
    added = cast("Sequence[Mapping[str, Any]]", told["added_tokens"])
    most = max([*vocab.values(), *(int(token["id"]) for token in added)])
    if most >= vocab_size:
        raise not_possible(
            "gguf", f"its tokenizer knows id {most}, but the model has {vocab_size} embeddings"
        )
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    unknown = told["model"].get("unk_token")
    falls_back = bool(told["model"].get("byte_fallback"))
    for token, index in vocab.items():
        is_byte = falls_back and len(token) == 6 and token.startswith("<0x")
        kind = TokenType.BYTE if is_byte else TokenType.UNKNOWN if token == unknown else TokenType.NORMAL
        tokens[index], types[index] = token, int(kind)
    for token in added:
        index = int(token["id"])
        tokens[index] = str(token["content"])
        if types[index] != TokenType.UNKNOWN:
            types[index] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    return tokens, types


def _parts(component: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    if component is None:
        return []
    return list(component[name]) if component["type"] == "Sequence" else [component]


def _check_bytes(told: Mapping[str, Any]) -> None:
    changing = [part["type"] for part in _parts(told["normalizer"], "normalizers") if part["type"] != "NFC"]
    if changing:
        raise not_possible(
            "gguf", f"its tokenizer changes the text first ({', '.join(changing)}), which GGUF cannot say"
        )


def _pre(told: Mapping[str, Any]) -> str:
    parts = _parts(told["pre_tokenizer"], "pretokenizers")
    match [part["type"] for part in parts], parts[-1]:
        case ["ByteLevel"], {"use_regex": True, "add_prefix_space": False}:
            return "gpt-2"
        case ["Digits", "ByteLevel"], {"use_regex": True, "add_prefix_space": False}:
            if parts[0]["individual_digits"]:
                return "smollm"
        case ["Split", "ByteLevel"], {"use_regex": False, "add_prefix_space": False}:
            cut = str(parts[0]["pattern"].get("Regex"))
            if cut in _CUTS and parts[0]["behavior"] == "Isolated":
                return _CUTS[cut]
        case _:
            pass
    raise not_possible("gguf", "its tokenizer cuts text in a way that llama.cpp has no name for here")


def _adds_space(told: Mapping[str, Any]) -> bool:
    """Whether a text begins with a space that it does not have. Raises TrainFailure for other normalisers."""
    parts = _parts(told["normalizer"], "normalizers")
    for part in parts:
        is_known = part["type"] == "Prepend" or (
            part["type"] == "Replace" and part["pattern"].get("String") == " " and part["content"] == _SPACE
        )
        if not is_known:
            raise not_possible(
                "gguf", f"its tokenizer changes the text first ({part['type']}), which GGUF cannot say"
            )
    cut = _parts(told["pre_tokenizer"], "pretokenizers")
    return any(part["type"] == "Prepend" for part in parts) or any(
        part["type"] == "Metaspace" and part.get("prepend_scheme") != "never" for part in cut
    )
