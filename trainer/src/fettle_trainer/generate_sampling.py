"""Choosing the next token of one request.

Order: logit bias and penalties, then temperature, then top_p. Log-probabilities that are reported are the
model's own, before any of these. Each request draws from its own generator, so that its neighbours in the
batch cannot change its answer. V = vocabulary size.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from .generate_bytes import TokenBytes
from .generate_text import Alternative, TokenLogprob

# Below this a temperature means "the most probable token"; a smaller divisor would overflow float32.
GREEDY_BELOW = 1e-4
# What OpenAI reports for a token of no probability; JSON has no infinity.
IMPOSSIBLE = -9999.0
# After so many refused candidates the next mask is laid over the whole vocabulary.
REFUSALS_BEFORE_MASK = 12


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict[int, float])


@dataclass(frozen=True, slots=True)
class Gate:
    """What may be chosen. `allows` tries one id; `masks` are V wide (True: allowed), the strictest last."""

    allows: Callable[[int], bool]
    masks: tuple[Callable[[int], Tensor], ...]


class Sampler:
    """Chooses tokens for one request and remembers what it chose."""

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(7), "little")
        self._generator = torch.Generator().manual_seed(seed)
        self._counts: Counter[int] = Counter()

    def choose(self, logits_V: Tensor, gate: Gate | None = None) -> int | None:
        """Next token id from float32 logits; None when `gate` refuses every token."""
        scores_V = self._adjusted(logits_V)
        refused = 0
        while True:
            token_id = self._draw(scores_V)
            if token_id is None or gate is None or gate.allows(token_id):
                break
            refused += 1
            scores_V[token_id] = -torch.inf
            masks_laid, too_many = divmod(refused, REFUSALS_BEFORE_MASK)
            if too_many == 0 and masks_laid <= len(gate.masks):
                scores_V[~gate.masks[masks_laid - 1](scores_V.shape[0])] = -torch.inf
        if token_id is not None:
            self._counts[token_id] += 1
        return token_id

    def _adjusted(self, logits_V: Tensor) -> Tensor:
        options = self._options
        scores_V = logits_V.clone()
        for token_id, bias in options.logit_bias.items():
            if 0 <= token_id < scores_V.shape[0]:
                scores_V[token_id] += bias
        if options.frequency_penalty or options.presence_penalty:
            for token_id, count in self._counts.items():
                scores_V[token_id] -= options.frequency_penalty * count + options.presence_penalty
        return scores_V

    def _draw(self, scores_V: Tensor) -> int | None:
        best = int(scores_V.argmax())
        if scores_V[best] == -torch.inf:
            return None
        if self._options.temperature < GREEDY_BELOW:
            return best
        weights_V = torch.softmax((scores_V / self._options.temperature).double(), dim=-1)
        if self._options.top_p < 1.0:
            sorted_V, order_V = weights_V.sort(descending=True, stable=True)
            before_V = sorted_V.cumsum(0) - sorted_V
            weights_V[order_V[before_V >= max(self._options.top_p, 1e-9)]] = 0.0
        ladder_V = weights_V.cumsum(0)
        point = torch.rand((), generator=self._generator, dtype=torch.float64) * ladder_V[-1]
        return min(int(torch.searchsorted(ladder_V, point, right=True)), ladder_V.shape[0] - 1)


def token_logprob(logits_V: Tensor, token_id: int, *, num_top: int, vocabulary: TokenBytes) -> TokenLogprob:
    """Log-probability of `token_id`, and of the `num_top` most probable, under the model's own logits."""
    logprobs_V = torch.log_softmax(logits_V.float(), dim=-1)
    top: list[Alternative] = []
    if num_top > 0:
        values, ids = torch.topk(logprobs_V, min(num_top, logprobs_V.shape[0]))
        ranked = zip(
            cast(list[int], cast(Any, ids).tolist()),
            cast(list[float], cast(Any, values).tolist()),
            strict=True,
        )
        top = [_alternative(top_id, value, vocabulary) for top_id, value in ranked]
    return TokenLogprob(_alternative(token_id, float(logprobs_V[token_id]), vocabulary), top)


def first_token_logprob(token_id: int, vocabulary: TokenBytes) -> TokenLogprob:
    """Entry of a token that nothing came before."""
    return TokenLogprob(_alternative(token_id, None, vocabulary), [])


def _alternative(token_id: int, logprob: float | None, vocabulary: TokenBytes) -> Alternative:
    spelt = vocabulary.spelt_bytes(token_id)
    finite = None if logprob is None else max(logprob, IMPOSSIBLE)
    return Alternative(spelt.decode("utf-8", "replace"), list(spelt), finite)
