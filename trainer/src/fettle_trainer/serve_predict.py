"""What heads that are no classifiers answer: a number for a text, the entities in it, or the part of it that
answers a question.

    input ── sequences ── (the model) ── numbers of each sequence ── prediction

A question about a long text becomes several sequences, one a window; the best window speaks.
Legend: T tokens of a sequence, V tags.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .prompt import PromptEncoder
from .serve_artefact import Artefact
from .serve_refusal import ServeRefusal
from .serve_requests import Asked
from .tasks.answers import best_span
from .tasks.entities import spans_of
from .tensor_files import integers
from .tokenizer import Window, Word


@dataclass(frozen=True, slots=True)
class Piece:
    """`types` empty where the model gets none. `made`: what the prediction must know of it."""

    ids: list[int]
    types: list[int]
    made: Any = None


class Predictor(ABC):
    """Of one model. Raises PromptError or ServeRefusal for an input that cannot be read."""

    @abstractmethod
    def sequences(self, asked: Asked, prompts: PromptEncoder, limit: int) -> list[Piece]: ...

    @abstractmethod
    def prediction(self, asked: Asked, sequences: Sequence[Piece], answers: Sequence[Tensor]) -> Any: ...


class Number(Predictor):
    """A score in the units of the training rows; of two answers to one prompt, the better one's is higher."""

    def __init__(self, artefact: Artefact) -> None:
        self._mean, self._std = artefact.target or (0.0, 1.0)

    def sequences(self, asked: Asked, prompts: PromptEncoder, limit: int) -> list[Piece]:
        text = prompts.classification_text(asked.text, asked.second, limit)
        return [Piece(text.ids, text.types)]

    def prediction(self, asked: Asked, sequences: Sequence[Piece], answers: Sequence[Tensor]) -> Any:
        return {"score": float(answers[0].double()[0]) * self._std + self._mean}


class Entities(Predictor):
    """`probability` of an entity: the mean of those of its words' tags."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels

    def sequences(self, asked: Asked, prompts: PromptEncoder, limit: int) -> list[Piece]:
        if asked.second is not None:
            raise ServeRefusal(
                "invalid_request", "A model that finds entities reads one text: send it alone."
            )
        text = prompts.tagged_text(asked.text, limit)
        if text.truncated:
            raise ServeRefusal(
                "context_length_exceeded",
                f"A text has more tokens than the {limit} this model reads: entities behind them would be "
                "missed. Send it in parts.",
            )
        return [Piece(text.ids, [], text.words)]

    def prediction(self, asked: Asked, sequences: Sequence[Piece], answers: Sequence[Tensor]) -> Any:
        words: list[Word] = sequences[0].made
        tags_NV = torch.softmax(answers[0][[word.token for word in words]], dim=-1)
        likely_N, tags_N = tags_NV.max(dim=-1)
        entities = list[dict[str, Any]]()
        for span in spans_of(integers(tags_N)):
            start, end = words[span.first].start, words[span.last].end
            entities.append(
                {
                    "start": start,
                    "end": end,
                    "label": self._labels[span.label],
                    "text": asked.text[start:end],
                    "probability": min(1.0, float(likely_N[span.first : span.last + 1].mean())),
                }
            )
        return {"entities": entities}


class Answer(Predictor):
    """`score`: by how much the answer is likelier than that there is none, as the logarithm of a ratio."""

    def sequences(self, asked: Asked, prompts: PromptEncoder, limit: int) -> list[Piece]:
        if asked.second is None:
            raise ServeRefusal(
                "invalid_request", "This model answers questions about a text: send question and context."
            )
        windows = prompts.windows(asked.text, asked.second, limit)
        return [Piece(window.ids, window.types, window) for window in windows]

    def prediction(self, asked: Asked, sequences: Sequence[Piece], answers: Sequence[Tensor]) -> Any:
        best: dict[str, Any] | None = None
        for sequence, logits_T2 in zip(sequences, answers, strict=True):
            window: Window = sequence.made
            found = best_span(logits_T2, torch.tensor([span is not None for span in window.spans]))
            if found is None or found.score <= (0.0 if best is None else best["score"]):
                continue
            first, last = window.spans[found.first], window.spans[found.last]
            if first is not None and last is not None and asked.second is not None:
                text = asked.second[first[0] : last[1]]
                best = {"start": first[0], "end": last[1], "text": text, "score": found.score}
        return {"answer": best}


def predictor_of(artefact: Artefact, where: str) -> Predictor:
    """ServeRefusal when the model's task is another."""
    if artefact.task in ("regression", "ranking"):
        return Number(artefact)
    if artefact.task == "token_classification" and artefact.labels is not None:
        return Entities(artefact.labels)
    if artefact.task == "question_answering":
        return Answer()
    raise ServeRefusal(
        "unsupported_parameter",
        f"{where} predicts no number, entity or answer: its task is {artefact.task or 'not known'}.",
    )
