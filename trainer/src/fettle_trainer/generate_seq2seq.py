"""Dynamic batching for encoder-decoder models.

Requests that wait together start together as a *wave*: their sources are encoded as one batch and their
answers grow in step, so that models with absolute positions (BART, Marian) need no padding in the decoder.
A finished answer leaves its wave; later requests form the next wave, which runs beside the first.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from .generate_job import GenerationJob, Progress, take_tokens
from .serve_adapters import AdapterShelf


@dataclass(slots=True)
class _Wave:
    jobs: list[GenerationJob]
    cache: EncoderDecoderCache
    hidden_BTD: Tensor
    mask_BT: Tensor
    num_steps: int = 0


class Seq2SeqEngine:
    """Not thread-safe: one loop owns it. `max_rows` counts the rows of all waves."""

    def __init__(self, model: Any, shelf: AdapterShelf, *, max_rows: int) -> None:
        self._model = model
        self._shelf = shelf
        self._max_rows = max_rows
        self._waiting: deque[GenerationJob] = deque()
        self._waves: list[_Wave] = []
        generation: Any = model.generation_config
        self._forced_first: int | None = generation.forced_bos_token_id
        pad_id = generation.pad_token_id if generation.pad_token_id is not None else model.config.pad_token_id
        self._pad_id: int | None = pad_id

    def submit(self, job: GenerationJob) -> None:
        self._waiting.append(job)

    def cancel(self, job_id: str) -> bool:
        """Forgets the job and frees its row; False when it is not here (any more)."""
        for job in self._waiting:
            if job.id == job_id:
                self._waiting.remove(job)
                return True
        for wave in self._waves:
            keep = [row for row, job in enumerate(wave.jobs) if job.id != job_id]
            if len(keep) < len(wave.jobs):
                self._keep(wave, keep)
                return True
        return False

    @property
    def jobs(self) -> list[GenerationJob]:
        return [*self._waiting, *(job for wave in self._waves for job in wave.jobs)]

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Starts the waiting requests that fit and adds one token to every row."""
        news: list[Progress] = []
        room = self._max_rows - sum(len(wave.jobs) for wave in self._waves)
        starting = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        if starting:
            try:
                self._waves.append(self._encoded(starting))
            except Exception as error:
                news += [Progress(job, error=error) for job in starting]
        for wave in list(self._waves):
            news += self._advance(wave)
        return news

    def _encoded(self, jobs: list[GenerationJob]) -> _Wave:
        length = max(len(job.source_ids) for job in jobs)
        device = self._model.device
        filler = self._pad_id or 0
        padded = [job.source_ids + [filler] * (length - len(job.source_ids)) for job in jobs]
        mask = [[1] * len(job.source_ids) + [0] * (length - len(job.source_ids)) for job in jobs]
        mask_BT = torch.tensor(mask, device=device)
        with self._shelf.rows([job.adapter for job in jobs]):
            encoder = self._model.get_encoder()
            hidden_BTD = encoder(
                input_ids=torch.tensor(padded, device=device), attention_mask=mask_BT
            ).last_hidden_state
        return _Wave(jobs, EncoderDecoderCache(DynamicCache(), DynamicCache()), hidden_BTD, mask_BT)

    def _advance(self, wave: _Wave) -> list[Progress]:
        if wave.num_steps == 0:
            tokens = [[job.generation.prompt_ids[-1]] for job in wave.jobs]
        else:
            tokens = [[job.generation.next_token] for job in wave.jobs]
        try:
            logits_BV = self._forward(wave, torch.tensor(tokens, device=self._model.device))
        except Exception as error:
            self._waves.remove(wave)
            return [Progress(job, error=error) for job in wave.jobs]
        wave.num_steps += 1
        news, going_on = take_tokens(wave.jobs, logits_BV)
        if len(going_on) < len(wave.jobs):
            self._keep(wave, going_on)
        return news

    def _forward(self, wave: _Wave, ids_B1: Tensor) -> Tensor:
        """Logits B x V of the next token."""
        with self._shelf.rows([job.adapter for job in wave.jobs]):
            output = self._model(
                encoder_outputs=BaseModelOutput(last_hidden_state=cast(Any, wave.hidden_BTD)),
                attention_mask=wave.mask_BT,
                decoder_input_ids=ids_B1,
                past_key_values=wave.cache,
                use_cache=True,
            )
        logits_BV = output.logits[:, -1].float()
        # Padding is no answer: these models are never trained on it, and Marian would choose it.
        if self._pad_id is not None:
            logits_BV[:, self._pad_id] = -torch.inf
        if wave.num_steps == 0 and self._forced_first is not None:
            forced_BV = torch.full_like(logits_BV, -torch.inf)
            forced_BV[:, self._forced_first] = logits_BV[:, self._forced_first]
            return forced_BV
        return logits_BV

    def _keep(self, wave: _Wave, rows: list[int]) -> None:
        if not rows:
            self._waves.remove(wave)
            return
        picked = torch.tensor(rows, device=self._model.device)
        wave.jobs = [wave.jobs[row] for row in rows]
        wave.cache.batch_select_indices(picked)
        wave.hidden_BTD = wave.hidden_BTD[picked]
        wave.mask_BT = wave.mask_BT[picked]
