"""Choosing tokens: options of one request, on logits that are known."""

import math
from collections import Counter

import pytest
import torch
from serve_harness import served

from fettle_trainer.generate_sampling import Gate, Sampler, SamplingOptions, token_logprob

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])


def drawn(options: SamplingOptions, count: int = 2000) -> Counter[int]:
    sampler = Sampler(options)
    return Counter(token for token in (sampler.choose(LOGITS) for _ in range(count)) if token is not None)


def test_a_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    def tokens(seed: int) -> list[int | None]:
        sampler = Sampler(SamplingOptions(temperature=1.5, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(50)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)


def test_frequencies_follow_the_softmax_of_the_tempered_logits() -> None:
    counts = drawn(SamplingOptions(temperature=2.0, seed=1), 8000)
    expected = torch.softmax(LOGITS / 2.0, dim=-1)
    for token in range(4):
        assert counts[token] / 8000 == pytest.approx(float(expected[token]), abs=0.02)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    shares = torch.softmax(LOGITS, dim=-1)
    just_below_two = float(shares[0] + shares[1]) - 1e-4
    assert set(drawn(SamplingOptions(seed=1, top_p=just_below_two))) == {0, 1}
    assert set(drawn(SamplingOptions(seed=1, top_p=0.0))) == {0}


def test_temperature_zero_takes_the_most_probable() -> None:
    assert set(drawn(SamplingOptions(temperature=0.0), 10)) == {0}


def test_logit_bias_bans_and_forces() -> None:
    assert set(drawn(SamplingOptions(temperature=0.0, logit_bias={0: -100.0}), 5)) == {1}
    assert set(drawn(SamplingOptions(seed=1, logit_bias={4: 100.0}), 50)) == {4}


def test_penalties_count_what_the_answer_already_holds() -> None:
    sampler = Sampler(SamplingOptions(temperature=0.0, frequency_penalty=0.6))
    # After one 0: 1.4 against 1.0; after two: 0.8 against 1.0.
    assert [sampler.choose(LOGITS) for _ in range(3)] == [0, 0, 1]
    sampler = Sampler(SamplingOptions(temperature=0.0, presence_penalty=1.5))
    # Once each is penalised, once alone: 0.5 against 1.0, then 0.5 against -0.5 and 0.0.
    assert [sampler.choose(LOGITS) for _ in range(4)] == [0, 1, 0, 0]


def test_a_gate_is_never_passed_and_may_refuse_everything() -> None:
    allowed = torch.tensor([False, False, False, True, True])
    gate = Gate(lambda token: bool(allowed[token]), (lambda size: allowed[:size],))
    sampler = Sampler(SamplingOptions(seed=3, temperature=1.0))
    assert {sampler.choose(LOGITS, gate) for _ in range(50)} == {3}
    nothing = torch.zeros(5, dtype=torch.bool)
    assert sampler.choose(LOGITS, Gate(lambda _: False, (lambda size: nothing[:size],))) is None


def test_many_refusals_lay_the_mask_over_a_large_vocabulary() -> None:
    logits = torch.linspace(5.0, 0.0, 1000)
    allowed = torch.zeros(1000, dtype=torch.bool)
    allowed[990] = True
    tried: list[int] = []

    def allows(token: int) -> bool:
        tried.append(token)
        return bool(allowed[token])

    sampler = Sampler(SamplingOptions(temperature=0.0))
    assert sampler.choose(logits, Gate(allows, (lambda size: allowed[:size],))) == 990
    assert len(tried) < 20


def test_reported_logprobs_are_the_models_own() -> None:
    vocabulary = served("llama", "decoder").voice.vocabulary
    report = token_logprob(LOGITS, 1, num_top=3, vocabulary=vocabulary)
    expected = torch.log_softmax(LOGITS, dim=-1)
    assert report.chosen.logprob == pytest.approx(float(expected[1]))
    assert [item.logprob for item in report.top] == pytest.approx(expected[:3].tolist())
    everything = token_logprob(LOGITS, 0, num_top=20, vocabulary=vocabulary)
    assert math.fsum(math.exp(item.logprob or 0.0) for item in everything.top) == pytest.approx(1.0)
