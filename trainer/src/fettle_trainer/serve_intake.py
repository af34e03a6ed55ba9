"""From a request to a job: token ids, adapter, head, stop tokens, and every check before the model runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from .generate import Generation, GenerationOptions, Voice
from .generate_job import GenerationJob
from .serve_adapters import Adapter, AdapterShelf
from .serve_artefact import Artefact, read_artefact
from .serve_encode import EncodeJob
from .serve_heads import Head, adapter_head, own_head
from .serve_models import ServedModel
from .serve_predict import predictor_of
from .serve_prompts import PromptWriter
from .serve_refusal import ServeRefusal
from .serve_requests import ClassifyRequest, EmbedRequest, EncodeRequest, GenerateRequest, PredictRequest
from .tokenizer import decoder_start


@dataclass(slots=True)
class _Fitted:
    """What an adapter brings besides its weights; `head` is built when first asked for."""

    artefact: Artefact
    voice: Voice
    head: Head | None = None


class Intake:
    """Knows one base model and its adapters; makes jobs, runs nothing."""

    def __init__(self, served: ServedModel, shelf: AdapterShelf) -> None:
        self._served = served
        self._shelf = shelf
        self._prompts = PromptWriter(served)
        self._own_head = own_head(served)
        self._fitted: WeakKeyDictionary[Adapter, _Fitted] = WeakKeyDictionary()

    def generation(self, request: GenerateRequest) -> GenerationJob:
        """ServeRefusal when the model cannot generate, or prompt and answer do not fit its context."""
        served = self._served
        if not served.generates:
            raise ServeRefusal(
                "unsupported_parameter", f"{served.folder} generates no text: it classifies or embeds."
            )
        adapter, fitted = self._adapter(request.adapter)
        ids = self._checked(self._prompts.for_generation(request.prompt), "The prompt")
        seq2seq = served.family == "seq2seq"
        used = 0 if seq2seq else len(ids)
        length = served.context_length - (0 if adapter is None else adapter.num_before)
        max_tokens = request.max_tokens if request.max_tokens is not None else max(length - used, 1)
        if used + max_tokens > length or len(ids) > length:
            raise self._too_long(len(ids), request.max_tokens)
        options = GenerationOptions(
            max_tokens, request.sampling, request.stop, request.logprobs, request.json_mode, request.echo
        )
        voice = fitted.voice if fitted is not None else served.voice
        if not seq2seq:
            return GenerationJob(request.id, adapter, Generation(ids, options, voice))
        if request.echo:
            raise ServeRefusal(
                "unsupported_parameter",
                "`echo` needs a decoder: an encoder-decoder's prompt is not its answer's text.",
            )
        generation = Generation([self._decoder_start()], options, voice)
        generation.strip_leading_space()
        return GenerationJob(request.id, adapter, generation, ids)

    def encoding(self, request: EncodeRequest) -> EncodeJob:
        """ServeRefusal when no head can answer, no encoder can embed, or a text is too long."""
        if isinstance(request, EmbedRequest):
            return self._embedding(request)
        if isinstance(request, ClassifyRequest):
            return self._classification(request)
        return self._prediction(request)

    def _embedding(self, request: EmbedRequest) -> EncodeJob:
        served = self._served
        adapter, _ = self._adapter(request.adapter)
        if served.family != "encoder":
            raise ServeRefusal(
                "unsupported_parameter",
                f"{served.folder} is a {served.family}; embeddings need an encoder model.",
            )
        limit = min(served.context_length, served.pooling.max_length or served.context_length)
        texts = [self._prompts.for_embedding(given) for given in request.inputs]
        ids = [self._checked(ids, f"Input {n}", limit) for n, ids in enumerate(texts)]
        return EncodeJob(request.id, adapter, None, ids)

    def _classification(self, request: ClassifyRequest) -> EncodeJob:
        adapter, fitted = self._adapter(request.adapter)
        head, artefact, limit = self._answering(adapter, fitted)
        if not head.classifies:
            raise ServeRefusal(
                "unsupported_parameter",
                f"{request.adapter or self._served.folder} has no labels: it was tuned for {artefact.task}. "
                "Ask it to predict.",
            )
        pieces = [self._prompts.for_classification(given, limit) for given in request.inputs]
        ids = [self._checked(piece.ids, f"Text {n}", limit) for n, piece in enumerate(pieces)]
        return EncodeJob(request.id, adapter, head, ids, types=[piece.types for piece in pieces])

    def _prediction(self, request: PredictRequest) -> EncodeJob:
        adapter, fitted = self._adapter(request.adapter)
        head, artefact, limit = self._answering(adapter, fitted)
        predictor = predictor_of(artefact, request.adapter or str(self._served.folder))
        pieces = [self._prompts.for_prediction(one, predictor, limit) for one in request.inputs]

        def conclude(answers: list[Tensor]) -> list[Any]:
            left = iter(answers)
            return [
                predictor.prediction(asked, own, [next(left) for _ in own])
                for asked, own in zip(request.inputs, pieces, strict=True)
            ]

        flat = [(n, piece) for n, own in enumerate(pieces) for piece in own]
        ids = [self._checked(piece.ids, f"Input {n}", limit) for n, piece in flat]
        types = [piece.types for _, piece in flat]
        return EncodeJob(request.id, adapter, head, ids, types=types, conclude=conclude)

    def _answering(self, adapter: Adapter | None, fitted: _Fitted | None) -> tuple[Head, Artefact, int]:
        """The head, what its artefact says, and the most tokens it reads at once."""
        head = self._head(adapter, fitted)
        artefact = fitted.artefact if fitted is not None else self._served.artefact
        context = self._served.context_length
        return head, artefact, min(context, artefact.max_length or context)

    def _adapter(self, path: str | None) -> tuple[Adapter | None, _Fitted | None]:
        if path is None:
            return None, None
        adapter = self._shelf.get(path)
        fitted = self._fitted.get(adapter)
        if fitted is None:
            artefact = read_artefact(Path(path))
            self._prompts.check_template(artefact, path)
            base = self._served.voice
            voice = Voice(base.vocabulary, artefact.stop_ids) if artefact.stop_ids else base
            fitted = self._fitted[adapter] = _Fitted(artefact, voice)
        return adapter, fitted

    def _head(self, adapter: Adapter | None, fitted: _Fitted | None) -> Head:
        if adapter is None or fitted is None:
            if self._own_head is None:
                raise ServeRefusal(
                    "unsupported_parameter",
                    f"{self._served.folder} has no classification head. "
                    "Tune it with task `classification` first.",
                )
            return self._own_head
        if fitted.head is None:
            fitted.head = adapter_head(self._served, adapter, fitted.artefact)
        return fitted.head

    def _checked(self, ids: list[int], what: str, limit: int | None = None) -> list[int]:
        num_known = self._served.trunk.get_input_embeddings().num_embeddings
        unknown = next((token_id for token_id in ids if not 0 <= token_id < num_known), None)
        if unknown is not None:
            raise ServeRefusal(
                "value_out_of_range",
                f"{what} holds the token id {unknown}; this model knows 0 to {num_known - 1}.",
            )
        if not ids:
            raise ServeRefusal("invalid_request", f"{what} is empty: expected at least one token.")
        if limit is not None and len(ids) > limit:
            raise ServeRefusal(
                "context_length_exceeded",
                f"{what} has {len(ids)} tokens; this model takes at most {limit}. Shorten it.",
            )
        return ids

    def _decoder_start(self) -> int:
        start = decoder_start(self._served.model, self._served.tokenizer)
        if start is None:
            raise ServeRefusal(
                "inference_failed", f"{self._served.folder}/config.json lacks decoder_start_token_id."
            )
        return start

    def _too_long(self, num_prompt: int, max_tokens: int | None) -> ServeRefusal:
        asked = "" if max_tokens is None else f" and up to {max_tokens} tokens of answer"
        return ServeRefusal(
            "context_length_exceeded",
            f"The prompt has {num_prompt} tokens{asked}; the context of this model is "
            f"{self._served.context_length} tokens. Shorten the messages or lower max_completion_tokens.",
        )
