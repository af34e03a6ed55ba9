"""Continuous batching for decoder-only models: requests join and leave between token steps.

    waiting -> prefilling (one at a time, a chunk per step) -> a row of the batch -> finished

Each `step` feeds one chunk of one prompt and one token of every row, so that a long prompt delays running
answers by a chunk, never by its whole length.
"""

import inspect
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .generate_cache import RowCache
from .generate_job import GenerationJob, Progress, take_token, take_tokens
from .serve_adapters import AdapterShelf

PREFILL_CHUNK = 512
# Room counted for an answer with a far limit: most answers are shorter.
ASSUMED_ANSWER = 1024


@dataclass(slots=True)
class _Prefill:
    job: GenerationJob
    cache: RowCache
    num_done: int = 0
    kept_logits_TV: list[Tensor] = field(default_factory=list[Tensor])


class DecoderEngine:
    """Not thread-safe: one loop owns it. `cache_bytes` bounds the keys and values of the whole batch."""

    def __init__(self, model: Any, shelf: AdapterShelf, *, max_rows: int, cache_bytes: int) -> None:
        self._model = model
        self._shelf = shelf
        self._max_rows = max_rows
        self._cache_bytes = cache_bytes
        self._bytes_per_position = 0
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._waiting: deque[GenerationJob] = deque()
        self._prefill: _Prefill | None = None
        self._rows: list[GenerationJob] = []
        self._cache: RowCache | None = None

    def submit(self, job: GenerationJob) -> None:
        self._waiting.append(job)

    def cancel(self, job_id: str) -> bool:
        """Forgets the job and frees its row; False when it is not here (any more)."""
        for job in self._waiting:
            if job.id == job_id:
                self._waiting.remove(job)
                return True
        if self._prefill is not None and self._prefill.job.id == job_id:
            self._prefill = None
            return True
        keep = [row for row, job in enumerate(self._rows) if job.id != job_id]
        if len(keep) == len(self._rows):
            return False
        self._keep(keep)
        return True

    @property
    def jobs(self) -> list[GenerationJob]:
        prefilling = [self._prefill.job] if self._prefill is not None else []
        return [*self._waiting, *prefilling, *self._rows]

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """One chunk of prefill and one token for every row. Empty when there is nothing to do."""
        news = self._prefill_step()
        if self._rows:
            news += self._decode_step()
        return news

    def _prefill_step(self) -> list[Progress]:
        if self._prefill is None and self._waiting and self._fits(self._waiting[0]):
            job = self._waiting.popleft()
            before = job.adapter.before if job.adapter is not None else ()
            self._prefill = _Prefill(job, RowCache.of_one_row(before))
        prefill = self._prefill
        if prefill is None:
            return []
        try:
            return self._advance(prefill)
        except Exception as error:
            self._prefill = None
            return [Progress(prefill.job, error=error)]

    def _advance(self, prefill: _Prefill) -> list[Progress]:
        generation = prefill.job.generation
        chunk = generation.prompt_ids[prefill.num_done : prefill.num_done + PREFILL_CHUNK]
        wants_all = generation.options.echo and generation.options.logprobs is not None
        logits_TV = self._forward(
            torch.tensor([chunk]), prefill.cache, [prefill.job], all_positions=wants_all
        )[0]
        prefill.num_done += len(chunk)
        if wants_all:
            prefill.kept_logits_TV.append(logits_TV.float().cpu())
        if prefill.num_done < len(generation.prompt_ids):
            return []
        self._prefill = None
        self._bytes_per_position = prefill.cache.bytes_per_position()
        echoed = None
        if generation.options.echo:
            echoed = generation.echo(torch.cat(prefill.kept_logits_TV) if wants_all else None)
        news = take_token(prefill.job, logits_TV[-1], echoed)
        if not news.over:
            self._join(prefill)
        return [news]

    def _decode_step(self) -> list[Progress]:
        if self._cache is None:
            raise RuntimeError("the batch has rows but no cache")
        try:
            tokens = torch.tensor([[job.generation.next_token] for job in self._rows])
            logits_BTV = self._forward(tokens, self._cache, self._rows, all_positions=False)
        except Exception as error:
            failed, self._rows, self._cache = self._rows, [], None
            return [Progress(job, error=error) for job in failed]
        news, going_on = take_tokens(self._rows, logits_BTV[:, -1])
        if len(going_on) < len(self._rows):
            self._keep(going_on)
        return news

    def _forward(
        self, ids_BT: Tensor, cache: RowCache, jobs: list[GenerationJob], *, all_positions: bool
    ) -> Tensor:
        """Logits B x T x V; of the last position alone unless `all_positions`, where the model can select."""
        device = self._model.device
        inputs: dict[str, object] = {
            "input_ids": ids_BT.to(device),
            "attention_mask": cache.attention_mask(ids_BT.shape[1], device),
            "past_key_values": cache,
            "use_cache": True,
        }
        if "position_ids" in self._takes:
            inputs["position_ids"] = cache.position_ids(ids_BT.shape[1], device)
        if "logits_to_keep" in self._takes and not all_positions:
            inputs["logits_to_keep"] = 1
        with self._shelf.rows([job.adapter for job in jobs]):
            return self._model(**inputs).logits

    def _fits(self, job: GenerationJob) -> bool:
        if not self._rows:
            return True
        if len(self._rows) >= self._max_rows:
            return False
        length = max(_reserved(other) for other in [job, *self._rows])
        return (len(self._rows) + 1) * length * self._bytes_per_position <= self._cache_bytes

    def _join(self, prefill: _Prefill) -> None:
        self._rows.append(prefill.job)
        if self._cache is None:
            self._cache = prefill.cache
        else:
            self._cache.join(prefill.cache)

    def _keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
        if not rows:
            self._cache = None
        elif self._cache is not None:
            self._cache.keep(rows)


def _reserved(job: GenerationJob) -> int:
    generation = job.generation
    before = job.adapter.num_before if job.adapter is not None else 0
    return before + len(generation.prompt_ids) + min(generation.options.max_tokens, ASSUMED_ANSWER)
