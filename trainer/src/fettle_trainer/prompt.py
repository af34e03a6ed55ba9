"""Chat messages and texts to token ids: the one place, for training and for serving.

    messages ── normalise ── guard ── tokenizer's template ── ids + which ids the model learns

`PromptEncoder.generation_prompt(messages)` is byte for byte the beginning of the ids that the training row of
the same conversation has up to the answer. Loss spans are found by rendering the conversation up to the
answer and comparing prefixes, never by searching for text.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from .messages import Message, PromptError, mapped, normalised, said, strings
from .tokenizer import Encoded, RawTokenizer, SafeTokenizer, Window, Word

Tools = Sequence[Any] | None

# For base models whose tokenizer brings no template: plain words, the answer ends with the tokenizer's EOS.
DEFAULT_TEMPLATE = (
    "{%- if bos_token %}{{ bos_token }}{% endif -%}"
    "{%- for message in messages -%}"
    "{{- '### ' + message['role'] | capitalize + ':\n' + message['content'] | trim -}}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}{{- '\n\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### Assistant:\n' -}}{%- endif -%}"
)

# Handed to every template, in training and serving alike. Reasoning models would otherwise begin a served
# answer with a thought that no training row has.
_TEMPLATE_OPTIONS: dict[str, Any] = {"enable_thinking": False}


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One sequence of a decoder. `learn[i]`: the model learns to say token i. `turn_ends`: where each learnt
    answer is complete (number of tokens up to and with its end), ascending."""

    ids: list[int]
    learn: list[bool]
    turn_ends: list[int]


@dataclass(frozen=True, slots=True)
class ClassificationText:
    """`types`: 0 and 1 for the first and second text; empty for a single text."""

    ids: list[int]
    types: list[int]
    truncated: bool


@dataclass(frozen=True, slots=True)
class TaggedText:
    """`truncated`: words were cut off."""

    ids: list[int]
    words: list[Word]
    truncated: bool


@dataclass(frozen=True, slots=True)
class _Turn:
    """The assistant's turn `message` in the rendered text: characters [start, end)."""

    message: int
    start: int
    end: int


class PromptEncoder:
    """Prompts of one tokenizer. Cheap to make; holds no state besides the tokenizer."""

    def __init__(self, raw: RawTokenizer) -> None:
        if not raw.chat_template:
            raw.chat_template = DEFAULT_TEMPLATE
        self.raw = raw
        self.tokens = SafeTokenizer(raw)

    # ------------------------------------------------------------ chat

    def generation_prompt(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """Ids after which the model answers. Raises PromptError."""
        return self._chat(messages, tools).prompt_ids(len(messages))

    def chat_sequences(self, messages: Sequence[Message], tools: Tools = None) -> list[TrainingSequence]:
        """What to train on. One sequence a conversation; one an answer where the template rewrites history
        (drops earlier thoughts), because then no single sequence shows the model what it will be shown.

        Learnt are the assistant's turns with weight other than 0, each with the token that ends it.
        Raises PromptError.
        """
        chat = self._chat(messages, tools)
        answers = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
        learnt = [index for index in answers if messages[index].get("weight", 1) != 0]
        if not learnt:
            raise PromptError(
                "no_answer",
                "No assistant turn to learn: add one, or set its weight to 1.",
            )
        last = learnt[-1]
        if chat.is_append_only(last):
            return [chat.sequence(last, learnt)]
        return [chat.sequence(index, [index]) for index in learnt]

    def _chat(self, messages: Sequence[Message], tools: Tools) -> "_Chat":
        if not messages:
            raise PromptError("no_messages", "The conversation is empty: it needs at least one message.")
        return _Chat(self, [normalised(message, index) for index, message in enumerate(messages)], tools)

    # ------------------------------------------------------------ plain text

    def text_prompt(self, text: str) -> list[int]:
        """Ids of a plain prompt for a decoder: one BOS where the tokenizer knows one, no EOS."""
        return self._bos() + self.tokens.encode_bare(text)

    def completion_sequence(self, prompt: str, completion: str) -> TrainingSequence:
        """A plain prompt and its completion; learnt are the completion and EOS."""
        prompt_ids = self.text_prompt(prompt)
        whole = self._bos() + self.tokens.encode_bare(prompt + completion)
        if whole[: len(prompt_ids)] != prompt_ids:
            whole = prompt_ids + self.tokens.encode_bare(completion)
        if len(whole) == len(prompt_ids):
            raise PromptError("no_answer", "The completion is empty: write the text the model shall answer.")
        ids = whole + self.eos()
        learn = [False] * len(prompt_ids) + [True] * (len(ids) - len(prompt_ids))
        return TrainingSequence(ids, learn, [len(ids)])

    def document(self, text: str) -> list[int]:
        """A plain text from its beginning (BOS; without one EOS, which ended the text before) to EOS."""
        return (self._bos() or self.eos()) + self.tokens.encode_bare(text) + self.eos()

    def classification_ids(self, text: str, text_pair: str | None = None) -> list[int]:
        """Ids of a text, or two, to classify or embed, with the tokenizer's own [CLS] and [SEP] (or BOS)."""
        ids = self.tokens.encode_plain(text, text_pair)
        if not ids:
            raise PromptError("empty_text", "The text is empty: write at least one word.")
        return ids

    def classification_text(self, text: str, text_pair: str | None, max_length: int) -> ClassificationText:
        """As `classification_ids`, cut to `max_length` with its closing control tokens kept, and token types
        of a pair."""
        ids, types = self.tokens.encode_pair(text, text_pair)
        if not ids:
            raise PromptError("empty_text", "The text is empty: write at least one word.")
        if len(ids) <= max_length:
            return ClassificationText(ids, types, truncated=False)
        ids, types = self.tokens.encode_pair(text, text_pair, max_length)
        return ClassificationText(ids, types, truncated=True)

    def tagged_text(self, text: str, max_length: int) -> TaggedText:
        """Ids of a text whose words are tagged. Raises PromptError."""
        self._needs_offsets()
        ids, words, truncated = self.tokens.encode_words(text, max_length)
        if not words:
            raise PromptError("empty_text", "The text is empty: write at least one word.")
        return TaggedText(ids, words, truncated)

    def windows(self, question: str, context: str, max_length: int) -> list[Window]:
        """A question before each part of a text. Raises PromptError."""
        self._needs_offsets()
        try:
            return self.tokens.encode_windows(question, context, max_length)
        except ValueError as error:
            raise PromptError("too_long", f"{error} Shorten the question or raise max_length.") from error

    def _needs_offsets(self) -> None:
        if not self.raw.is_fast:
            raise PromptError(
                "slow_tokenizer",
                "This model's tokenizer does not say where its tokens stand in the text. Choose a model with "
                "a tokenizer.json.",
            )

    def seq2seq_source(self, text: str) -> list[int]:
        """Encoder ids of a seq2seq model."""
        return self.classification_ids(text)

    def seq2seq_target(self, text: str) -> list[int]:
        """Decoder labels; they end with EOS. mBART writes the language behind it, where nothing is read."""
        ids = self.tokens.encode_plain(text, target=True)
        eos = self.eos()
        if eos and eos[0] in ids:
            return ids[: len(ids) - ids[::-1].index(eos[0])]
        return ids + eos

    # ------------------------------------------------------------ facts

    def stop_ids(self, generation_eos: int | Sequence[int] | None = None) -> list[int]:
        """Tokens that end an answer: EOS, the model's own list, what the template writes after one."""
        found = list(self.eos())
        if isinstance(generation_eos, int):
            found.append(generation_eos)
        elif generation_eos is not None:
            found.extend(generation_eos)
        try:
            probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            [sequence] = self.chat_sequences(probe)
            end = sequence.ids[sequence.turn_ends[-1] - 1]
            if end in self.tokens.control_ids:
                found.append(end)
        except PromptError:
            pass  # a template that cannot render the plainest conversation adds no stop token
        return sorted(set(found))

    def template_hash(self) -> str:
        """SHA-256 of the chat template and of what is handed to it."""
        source = json.dumps([self.raw.chat_template, _TEMPLATE_OPTIONS], sort_keys=True)
        return hashlib.sha256(source.encode()).hexdigest()

    def _bos(self) -> list[int]:
        bos = self.raw.bos_token_id
        return [bos] if self.tokens.adds_bos and bos is not None else []

    def begun(self, encoded: Encoded) -> Encoded:
        """With exactly one BOS where the tokenizer uses one: templates may or may not write it."""
        bos = self._bos()
        if not bos:
            return encoded
        written = 0
        while written < len(encoded.ids) and encoded.ids[written] == bos[0]:
            written += 1
        return Encoded(bos + encoded.ids[written:], [-1, *encoded.starts[written:]])

    def eos(self) -> list[int]:
        """EOS as a list; empty where the tokenizer has none."""
        return [] if self.raw.eos_token_id is None else [self.raw.eos_token_id]


class _Chat:
    """One conversation, rendered as often as needed, each prefix once."""

    def __init__(self, encoder: PromptEncoder, messages: list[dict[str, Any]], tools: Tools) -> None:
        self._encoder = encoder
        self._tokens = encoder.tokens
        self._guard = self._tokens.guard_character(list(strings([messages, list(tools or [])])))
        self._messages = [self._guarded(message) for message in messages]
        self._tools = None if not tools else [mapped(tool, self._guard_untrusted) for tool in tools]
        self._rendered: dict[tuple[int, bool], str] = {}

    def is_append_only(self, last: int) -> bool:
        """True when every answer up to `last` stands in the whole text as it was when it was the newest."""
        whole = self._text(last + 1, prompt=False)
        return all(
            whole.startswith(self._text(index, prompt=True))
            and whole.startswith(self._text(index + 1, prompt=False))
            for index in self._answers(last + 1)
        )

    def prompt_ids(self, count: int) -> list[int]:
        """Generation prompt after the first `count` messages."""
        text = self._text(count, prompt=True)
        return self._encode(text, self._turns(count, text)).ids

    def sequence(self, last: int, learnt: Sequence[int]) -> TrainingSequence:
        """The conversation up to message `last`; answers in `learnt` are learnt, each with its end token."""
        text = self._text(last + 1, prompt=False)
        turns = self._turns(last + 1, text)
        if not turns or turns[-1].message != last:
            raise PromptError(
                "template_not_prefix",
                "The chat template renders this answer differently from its generation prompt, so the model "
                "would be trained on another prompt than it is asked with. Remove the reasoning part from "
                "the answer, or use a model whose template keeps it.",
            )
        end, has_end_token = self._answer_end(text, turns[-1], newest=True)
        encoded = self._encode(text[:end], turns)
        ids, learn, ends = encoded.ids, [False] * len(encoded.ids), list[int]()
        for turn in turns:
            if turn.message not in learnt:
                continue
            turn_end, _ = self._answer_end(text, turn, newest=turn is turns[-1])
            inside = [i for i, start in enumerate(encoded.starts) if turn.start <= start < turn_end]
            for index in inside:
                learn[index] = True
            if inside:
                ends.append(inside[-1] + 1)
        if not ends or not self._messages_say_something(learnt):
            raise PromptError("no_answer", "No assistant turn has text to learn: write the answer.")
        if not has_end_token and last in learnt:
            ids = ids + self._encoder.eos()
            learn += [True] * (len(ids) - len(learn))
            ends[-1] = len(ids)
        return TrainingSequence(ids, learn, ends)

    def _answer_end(self, text: str, turn: _Turn, *, newest: bool) -> tuple[int, bool]:
        """Character where the answer is complete, and whether a control token ends it: space after it is the
        template's, and no model needs to say it."""
        found = self._tokens.last_control(text[turn.start : turn.end])
        if found is not None and not text[turn.start + found : turn.end].strip():
            return turn.start + found, True
        if newest:
            return turn.start + len(text[turn.start : turn.end].rstrip()), False
        return turn.end, False

    def _messages_say_something(self, learnt: Sequence[int]) -> bool:
        return any(any(text.strip() for text in strings(said(self._messages[index]))) for index in learnt)

    def _encode(self, text: str, turns: Sequence[_Turn]) -> Encoded:
        """Cut before an answer that would change how its prompt is read (a merge over the border)."""
        ids: list[int] = []
        starts: list[int] = []
        cut = 0
        for turn in turns:
            prompt = self._tokens.encode(text[cut : turn.start], self._guard)
            answered = self._tokens.encode(text[cut : turn.end], self._guard)
            if answered.ids[: len(prompt.ids)] != prompt.ids:
                ids += prompt.ids
                starts += [cut + start for start in prompt.starts]
                cut = turn.start
        rest = self._tokens.encode(text[cut:], self._guard)
        return self._encoder.begun(Encoded(ids + rest.ids, starts + [cut + start for start in rest.starts]))

    def _answers(self, count: int) -> list[int]:
        return [index for index in range(1, count) if self._messages[index]["role"] == "assistant"]

    def _turns(self, count: int, whole: str) -> list[_Turn]:
        """Answers among the first `count` messages that stand in `whole` as they stood when newest."""
        turns: list[_Turn] = []
        for index in self._answers(count):
            prompt = self._text(index, prompt=True)
            answered = self._text(index + 1, prompt=False)
            if answered.startswith(prompt) and whole.startswith(answered):
                turns.append(_Turn(index, len(prompt), len(answered)))
        return turns

    def _text(self, count: int, *, prompt: bool) -> str:
        key = (count, prompt)
        if key not in self._rendered:
            self._rendered[key] = self._render(self._messages[:count], prompt=prompt)
        return self._rendered[key]

    def _render(self, messages: list[dict[str, Any]], *, prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self._apply(messages, prompt=prompt)
        except TemplateError as error:
            if not messages or messages[0]["role"] != "system" or len(messages) < 2:
                raise _template_refusal(error) from error
        # Some templates know no system turn: its text goes before the first user's.
        first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        try:
            return self._apply([first, *messages[2:]], prompt=prompt)
        except TemplateError as error:
            raise _template_refusal(error) from error

    def _apply(self, messages: list[dict[str, Any]], *, prompt: bool) -> str:
        rendered = self._encoder.raw.apply_chat_template(
            messages,
            tools=self._tools,
            tokenize=False,
            add_generation_prompt=prompt,
            **_TEMPLATE_OPTIONS,
        )
        return cast("str", rendered)

    def _guard_untrusted(self, text: str) -> str:
        return self._tokens.guarded(text, self._guard, trusted=False)

    def _guard_trusted(self, text: str) -> str:
        return self._tokens.guarded(text, self._guard, trusted=True)

    def _guarded(self, message: dict[str, Any]) -> dict[str, Any]:
        guard = self._guard_trusted if message["role"] == "assistant" else self._guard_untrusted
        return {key: value if key == "role" else mapped(value, guard) for key, value in message.items()}


def _template_refusal(error: Exception) -> PromptError:
    return PromptError("template", f"The model's chat template refuses this conversation: {error}.")
