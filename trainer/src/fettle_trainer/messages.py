"""Chat messages as templates expect them, and the refusal of those that are not."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class PromptError(ValueError):
    """A row or request that cannot become token ids. `rule` is a stable name, the text says what to do."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


def normalised(message: Message, index: int) -> dict[str, Any]:
    """One message as templates expect it: text content, arguments of tool calls as objects, known roles."""
    role = message.get("role")
    if role not in ROLES:
        raise PromptError("role", f"messages[{index}].role is {role!r}: use one of {', '.join(ROLES)}.")
    kept = {key: value for key, value in message.items() if key != "weight" and value is not None}
    kept["role"] = {"developer": "system", "function": "tool"}.get(role, role)
    kept["content"] = _content(message.get("content"), index)
    if "tool_calls" in kept:
        kept["tool_calls"] = [_tool_call(call) for call in kept["tool_calls"]]
    return kept


def _content(content: object, index: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        texts = [_text_part(part) for part in parts]
        if None not in texts:
            return "".join(text for text in texts if text is not None)
    raise PromptError("content", f"messages[{index}].content must be text: a string, or parts of type text.")


def _text_part(part: Any) -> str | None:
    if not isinstance(part, dict):
        return None
    known = cast("dict[str, Any]", part)
    text = known.get("text")
    return text if known.get("type") == "text" and isinstance(text, str) else None


def _tool_call(call: Any) -> Any:
    """OpenAI sends arguments as JSON text, templates want the object."""
    if not isinstance(call, dict):
        return call
    known = cast("dict[str, Any]", call)
    function = known.get("function")
    if not isinstance(function, dict):
        return known
    named = cast("dict[str, Any]", function)
    arguments = named.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed: Any = json.loads(arguments)
        except ValueError:
            return known
        if isinstance(parsed, dict):
            return {**known, "function": {**named, "arguments": cast("dict[str, Any]", parsed)}}
    return known


def said(message: Mapping[str, Any]) -> Any:
    return [message.get("content"), message.get("tool_calls"), message.get("reasoning_content")]


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with each string in it, keys included, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        known = cast("dict[Any, Any]", value)
        return {mapped(key, change): mapped(item, change) for key, item in known.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in cast("list[Any]", value)]
    return value


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from strings(item)
