"""Prompts of requests, written by the code that writes the prompts of training rows (prompt.py)."""

from typing import Any, cast

from .prompt import PromptEncoder, PromptError
from .serve_artefact import Artefact
from .serve_models import ServedModel
from .serve_predict import Piece, Predictor
from .serve_refusal import ServeRefusal
from .serve_requests import Asked, MessagesPrompt, Prompt, TextPrompt


class PromptWriter:
    """Token ids for one model. Every method raises ServeRefusal when the text cannot become a prompt."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._encoder = PromptEncoder(served.tokenizer)

    def for_generation(self, prompt: Prompt) -> list[int]:
        """The decoder's prompt, or the encoder's source of a seq2seq model."""
        seq2seq = self._served.family == "seq2seq"
        try:
            if isinstance(prompt, MessagesPrompt) and seq2seq:
                return self._encoder.seq2seq_source(_only_text(prompt.messages))
            if isinstance(prompt, MessagesPrompt):
                return self._encoder.generation_prompt(prompt.messages, prompt.tools)
            if isinstance(prompt, TextPrompt):
                return self._encoder.seq2seq_source(prompt.text) if seq2seq else self._plain(prompt.text)
        except PromptError as error:
            raise ServeRefusal("invalid_request", str(error)) from error
        return prompt.tokens

    def for_classification(self, given: str | list[int] | Asked, limit: int) -> Piece:
        """Texts are cut to `limit` tokens as in training; token ids are taken as they are."""
        if isinstance(given, list):
            return Piece(given, [])
        asked = Asked(given, None) if isinstance(given, str) else given
        try:
            text = self._encoder.classification_text(asked.text, asked.second, limit)
            return Piece(text.ids, text.types)
        except PromptError as error:
            raise ServeRefusal("invalid_request", str(error)) from error

    def for_prediction(self, asked: Asked, predictor: Predictor, limit: int) -> list[Piece]:
        try:
            return predictor.sequences(asked, self._encoder, limit)
        except PromptError as error:
            raise ServeRefusal("invalid_request", str(error)) from error

    def for_embedding(self, given: str | list[int]) -> list[int]:
        if not isinstance(given, str):
            return given
        try:
            return self._encoder.classification_ids(given)
        except PromptError as error:
            raise ServeRefusal("invalid_request", str(error)) from error

    def check_template(self, artefact: Artefact, where: str) -> None:
        """An adapter trained with another chat template would be asked in words it never saw."""
        if artefact.chat_template_sha256 not in (None, self._encoder.template_hash()):
            raise ServeRefusal(
                "inference_failed",
                f"{where} was trained with another chat template than {self._served.folder} has now. "
                "Put the base model's tokenizer files back as they were, or train again.",
            )

    def _plain(self, text: str) -> list[int]:
        """An empty prompt begins a text: BOS, or the token that ended the text before it."""
        return self._encoder.text_prompt(text) or self._encoder.eos()


def _only_text(messages: list[dict[str, Any]]) -> str:
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise ServeRefusal(
            "unsupported_parameter",
            f"An encoder-decoder model takes one message, from the user; {len(messages)} came. "
            "Put everything into it.",
        )
    content = messages[0].get("content")
    if isinstance(content, str):
        return content
    parts = cast(list[Any], content) if isinstance(content, list) else []
    texts = [cast(dict[str, Any], part).get("text") for part in parts if isinstance(part, dict)]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ServeRefusal(
            "invalid_request", "messages[0].content must be text: a string, or parts of type text."
        )
    return "".join(cast(list[str], texts))
