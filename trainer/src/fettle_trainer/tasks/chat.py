"""Conversations and completions: a decoder learns what the assistant says. `aux`: 1 at tokens learnt."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..messages import PromptError
from ..prompt import TrainingSequence
from .objective import Feed, Objective, RowReader, Scores, TokenRow, text_of

if TYPE_CHECKING:
    from ..collate import Batch


class Perplexity(Scores):
    def add(self, logits_NV: Tensor, batch: "Batch") -> None:
        pass  # the mean loss says it

    def metrics(self, mean_loss: float) -> dict[str, float]:
        return {"perplexity": math.exp(min(mean_loss, 700.0))}


class Chat(Objective):
    auto_class = "AutoModelForCausalLM"
    peft_task = "CAUSAL_LM"
    reads = "vocabulary"
    has_head = False

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        prompts = reader.prompts
        if "messages" in row:
            sequences = prompts.chat_sequences(row["messages"], row.get("tools"))
        else:
            sequences = [prompts.completion_sequence(text_of(row, "prompt"), text_of(row, "completion"))]
        return [_fitted(sequence, reader.max_length) for sequence in sequences]

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        return [answer_feed(ids, aux)]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return int(aux.sum())

    def scores(self) -> Scores:
        return Perplexity()


def answer_feed(ids: Tensor, learn: Tensor) -> Feed:
    """Token j is predicted at j - 1; the last token predicts nothing and is not fed."""
    places = learn[1:].nonzero()[:, 0]
    return Feed(ids[:-1], places, ids[1:][places])


def _fitted(sequence: TrainingSequence, max_length: int) -> TokenRow:
    """Too long: the conversation ends after its last answer that fits whole. No answer is ever cut."""
    fitting = [end for end in sequence.turn_ends if end <= max_length]
    if not fitting:
        raise PromptError(
            "too_long",
            f"The prompt and its first answer have {sequence.turn_ends[0]} tokens, more than max_length "
            f"{max_length}. Shorten the row or raise max_length.",
        )
    end = fitting[-1]
    learn = [int(one) for one in sequence.learn[:end]]
    if not any(learn[1:]):
        raise PromptError("no_answer", "No token is left to learn: write the answer.")
    return TokenRow(sequence.ids[:end], learn, 0, truncated=end < sequence.turn_ends[-1])
