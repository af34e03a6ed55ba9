"""A generation in an engine, and the news an engine gives of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .generate import FinishReason, Generation
from .generate_text import Piece
from .serve_adapters import Adapter


@dataclass(slots=True, eq=False)
class GenerationJob:
    """`source_ids`: the encoder's input of a seq2seq model; empty for a decoder."""

    id: str
    adapter: Adapter | None
    generation: Generation
    source_ids: list[int] = field(default_factory=list[int])

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.source_ids or self.generation.prompt_ids)


@dataclass(frozen=True, slots=True)
class Progress:
    """News of one job after one token. It is over when `error` or `finish_reason` is set."""

    job: GenerationJob
    piece: Piece = field(default_factory=Piece)
    finish_reason: FinishReason | None = None
    error: Exception | None = None

    @property
    def over(self) -> bool:
        return self.error is not None or self.finish_reason is not None


def take_token(job: GenerationJob, logits_V: Tensor, before: Piece | None = None) -> Progress:
    """Gives the job its next token. What goes wrong is this job's end, not its neighbours'."""
    try:
        piece = job.generation.take(logits_V)
    except Exception as error:
        return Progress(job, error=error)
    return Progress(job, piece if before is None else before + piece, job.generation.finish_reason)


def take_tokens(jobs: Sequence[GenerationJob], logits_BV: Tensor) -> tuple[list[Progress], list[int]]:
    """One token for each row; news of all, and the rows that go on."""
    news = [take_token(job, logits_BV[row]) for row, job in enumerate(jobs)]
    return news, [row for row, item in enumerate(news) if not item.over]
