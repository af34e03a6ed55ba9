"""Requests of the serve protocol (see serve.py): a JSON line in, a frozen record out, or a ServeRefusal."""

import json
import re
from dataclasses import dataclass
from typing import Any, cast

from .generate_sampling import SamplingOptions
from .serve_refusal import ServeRefusal

# An escape that may be half of a pair: tokenizers refuse it with words that help nobody.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class MessagesPrompt:
    messages: list[dict[str, Any]]
    tools: list[Any] | None


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class TokensPrompt:
    tokens: list[int]


Prompt = MessagesPrompt | TextPrompt | TokensPrompt


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """`max_tokens` None: as long as the context allows. `logprobs`: alternatives, None for no report."""

    id: str
    adapter: str | None
    prompt: Prompt
    max_tokens: int | None
    sampling: SamplingOptions
    stop: tuple[str, ...]
    logprobs: int | None
    json_mode: bool
    echo: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A text, or two: a pair, a prompt and what was said to it, or a question and where its answer is."""

    text: str
    second: str | None


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Wants a vector of each input."""

    id: str
    adapter: str | None
    inputs: list[str | list[int]]


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """Wants the labels' probabilities of each input."""

    id: str
    adapter: str | None
    inputs: list[str | list[int] | Asked]


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Wants of each input what the model's head was trained to tell."""

    id: str
    adapter: str | None
    inputs: list[Asked]


@dataclass(frozen=True, slots=True)
class CancelRequest:
    id: str


EncodeRequest = EmbedRequest | ClassifyRequest | PredictRequest
Request = GenerateRequest | EncodeRequest | CancelRequest


def parse_line(line: str) -> tuple[str | None, Request | ServeRefusal]:
    """The id, when one can be read, and the request or why it is none."""
    try:
        fields = cast(object, json.loads(line))
    except (ValueError, RecursionError) as error:
        return None, ServeRefusal("invalid_request", f"A request line is not JSON: {error}.")
    if not isinstance(fields, dict):
        return None, ServeRefusal("invalid_request", "A request line must be a JSON object.")
    entries = cast(dict[str, Any], fields)
    request_id = entries.get("id")
    if not isinstance(request_id, str):
        return None, ServeRefusal("invalid_request", "A request needs an `id` text.")
    try:
        if _SURROGATE.search(line):
            json.dumps(entries, ensure_ascii=False).encode()
        return request_id, _parse(request_id, entries)
    except ServeRefusal as refusal:
        return request_id, refusal
    except UnicodeEncodeError:
        message = "A text holds half of a surrogate pair, which is no character. Send well-formed Unicode."
        return request_id, ServeRefusal("invalid_request", message)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return request_id, ServeRefusal("invalid_request", f"Request {request_id} is malformed: {error!r}.")


def _parse(request_id: str, entries: dict[str, Any]) -> Request:
    operation = entries.get("op")
    if operation == "cancel":
        return CancelRequest(request_id)
    if operation == "generate":
        return _parse_generate(request_id, entries)
    if operation == "embed":
        return EmbedRequest(request_id, entries.get("adapter"), list(entries["inputs"]))
    if operation == "classify":
        given = cast(list[Any], entries["inputs"])
        texts = [_asked(cast(dict[str, Any], one)) if isinstance(one, dict) else one for one in given]
        return ClassifyRequest(request_id, entries.get("adapter"), texts)
    if operation == "predict":
        asked = [_asked(one) for one in cast(list[dict[str, Any]], entries["inputs"])]
        return PredictRequest(request_id, entries.get("adapter"), asked)
    raise ServeRefusal(
        "invalid_request",
        f"Unknown `op` {operation!r}: expected generate, classify, predict, embed or cancel.",
    )


def _asked(given: dict[str, Any]) -> Asked:
    return Asked(_text(given["text"]), _text(given["second"]) if "second" in given else None)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is a {type(value).__name__}")
    return value


def _parse_generate(request_id: str, entries: dict[str, Any]) -> GenerateRequest:
    bias = cast(dict[str, float], entries.get("logit_bias") or {})
    sampling = SamplingOptions(
        temperature=float(entries.get("temperature", 1.0)),
        top_p=float(entries.get("top_p", 1.0)),
        seed=entries.get("seed"),
        frequency_penalty=float(entries.get("frequency_penalty", 0.0)),
        presence_penalty=float(entries.get("presence_penalty", 0.0)),
        logit_bias={int(token_id): float(value) for token_id, value in bias.items()},
    )
    return GenerateRequest(
        id=request_id,
        adapter=entries.get("adapter"),
        prompt=_parse_prompt(cast(dict[str, Any], entries["prompt"])),
        max_tokens=entries.get("max_tokens"),
        sampling=sampling,
        stop=tuple(str(text) for text in entries.get("stop") or ()),
        logprobs=entries.get("logprobs"),
        json_mode=bool(entries.get("json_mode", False)),
        echo=bool(entries.get("echo", False)),
    )


def _parse_prompt(prompt: dict[str, Any]) -> Prompt:
    if "messages" in prompt:
        return MessagesPrompt(list(prompt["messages"]), prompt.get("tools"))
    if "text" in prompt:
        return TextPrompt(str(prompt["text"]))
    return TokensPrompt([int(token_id) for token_id in prompt["tokens"]])
