"""An Ollama Modelfile whose TEMPLATE writes what the chat template writes, or none at all.

Ollama renders a turn of system, prompt and response at a time. What stands between them is read off
conversations that the model's own template rendered; it is tried on others, and left out where it differs.
"""

import json
from dataclasses import dataclass

from ..messages import Message, PromptError
from ..prompt import PromptEncoder

_SYSTEM, _USER, _ANSWER, _NEXT = "Zq1 system", "Zq2 question", "Zq3 answer", "Zq4 next"


@dataclass(frozen=True, slots=True)
class Turns:
    """What is written around the texts. `alone`: before a prompt without a system turn. `default`: the system
    turn that the template adds by itself."""

    before_system: str
    after_system: str
    alone: str
    tail: str
    after_answer: str
    default: str | None

    def text(self, messages: list[Message]) -> str:
        """As Ollama writes it."""
        system, out = self.default, ""
        for message in messages:
            match message["role"]:
                case "system":
                    system = str(message["content"])
                case "user":
                    begun = self.alone if system is None else self.before_system + system + self.after_system
                    out += begun + str(message["content"]) + self.tail
                    system = None
                case _:
                    out += str(message["content"]) + self.after_answer
        return out


def modelfile(prompts: PromptEncoder, *, gguf: str, stop_ids: list[int]) -> tuple[str, bool]:
    """The file's text, and whether it has a TEMPLATE: without one Ollama takes the GGUF's if it can."""
    turns = ollama_turns(prompts)
    lines = [f"FROM ./{gguf}"]
    if turns is not None:
        system = (
            f"{{{{ if .System }}}}{turns.before_system}{{{{ .System }}}}{turns.after_system}{{{{ else }}}}"
        )
        body = f"{system}{turns.alone}{{{{ end }}}}{{{{ .Prompt }}}}{turns.tail}{{{{ .Response }}}}"
        body += turns.after_answer
        lines.append(f'TEMPLATE """{body}"""')
        if turns.default is not None:
            lines.append(f'SYSTEM """{turns.default}"""')
    stops = [_decoded(prompts, [one]) for one in stop_ids]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops if stop.strip()]
    return "\n".join(lines) + "\n", turns is not None


def ollama_turns(prompts: PromptEncoder) -> Turns | None:
    """None when no such turns write what the template writes."""
    try:
        turns = _read_off(prompts)
        fits = turns is not None and all(turns.text(one) == _rendered(prompts, one) for one in _tried())
    except (PromptError, ValueError):
        return None
    written = "" if turns is None else f"{turns}"
    return turns if fits and "{{" not in written and '"""' not in written else None


def _read_off(prompts: PromptEncoder) -> Turns | None:
    alone, tail = _around(_rendered(prompts, [_said("user", _USER)]), _USER)
    conversation = [_said("user", _USER), _said("assistant", _ANSWER), _said("user", _NEXT)]
    _, middle, between, _ = _around(_rendered(prompts, conversation), _USER, _ANSWER, _NEXT)
    if middle != tail:
        return None
    with_system = _rendered(prompts, [_said("system", _SYSTEM), _said("user", _USER)])
    before, after, _ = _around(with_system, _SYSTEM, _USER)
    if between.endswith(alone):
        return Turns(before, after, alone, tail, between.removesuffix(alone), None)
    if alone.startswith(before) and alone.endswith(after) and len(alone) > len(before) + len(after):
        return Turns(before, after, between, tail, "", alone[len(before) : len(alone) - len(after)])
    return None


def _tried() -> list[list[Message]]:
    system, user = _said("system", "Be brief."), _said("user", "Why is the sky blue?\nIn one line.")
    answer, more = _said("assistant", "Light scatters."), _said("user", "And at dusk?")
    plain = [[user], [user, answer, more], [user, answer, more, answer, user]]
    return [*plain, *([system, *one] for one in plain)]


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _around(text: str, *parts: str) -> list[str]:
    """What stands before, between and after the parts. Raises ValueError when one is not in it once."""
    found: list[str] = []
    for part in parts:
        before, rest = text.split(part)
        found.append(before)
        text = rest
    return [*found, text]


def _rendered(prompts: PromptEncoder, messages: list[Message]) -> str:
    """Without the BOS that llama.cpp writes by itself."""
    ids = prompts.generation_prompt(messages)
    if prompts.tokens.adds_bos and ids[:1] == [prompts.raw.bos_token_id]:
        ids = ids[1:]
    return _decoded(prompts, ids)


def _decoded(prompts: PromptEncoder, ids: list[int]) -> str:
    return prompts.raw.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
