"""Sampled output has the target's distribution, and does not depend on how it was computed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from engines.live.kernels.table_updates import count_matches
from engines.live.model import verification
from engines.live.model.pairs import Pair
from engines.live.model.verification import gumbel, pick, request_key
from engines.policy.architecture import ARCHITECTURES, PDV
from engines.policy.draft_length import FixedDraftLength
from engines.policy.request import Request
from tests.engines.live.conftest import VOCABULARY, random_requests
from tests.engines.live.test_lossless import served

TEMPERATURE = 0.8
PROMPT = (7, 12, 33, 5)


def target_distributions(pair: Pair, prompts: list[list[int]], temperature: float) -> np.ndarray:
    """softmax(logits / temperature) of the target for the token after each prompt, from plain transformers."""
    pair.target.set_attn_implementation("sdpa")
    with torch.inference_mode():
        logits = pair.target(torch.tensor(prompts)).logits[:, -1]
    pair.target.set_attn_implementation("slot_pool")
    return torch.softmax(logits.double() / temperature, -1).numpy()


def sampled_second_tokens(pair: Pair, count: int, k: int) -> list[list[int]]:
    """Outputs of many requests that differ only in their id, so in their noise. The second and later tokens come
    from speculation."""
    requests = tuple(Request(i, 4, 3, prompt=PROMPT, temperature=TEMPERATURE, seed=5) for i in range(count))
    limits = {"prefill": 16, "draft": 48, "verify": 48}  # one prompt at a time would leave the others waiting
    architecture = PDV.replace(draft_length=FixedDraftLength(k)).with_batch_limits(limits)
    return list(served(architecture, pair, requests, 48).values())


@pytest.fixture(scope="module")
def samples(llama: Pair) -> list[list[int]]:
    return sampled_second_tokens(llama, 1500, 3)


def chi_squared_p(observed: np.ndarray, expected: np.ndarray) -> float:
    """p of Pearson's test; tokens expected fewer than 5 times share a bin."""
    large = expected >= 5
    rest = (observed[~large].sum(), expected[~large].sum())
    o, e = np.append(observed[large], rest[0]), np.append(expected[large], max(rest[1], 1e-9))
    return float(stats.chisquare(o, e * o.sum() / e.sum()).pvalue)


def test_speculative_samples_follow_the_target(llama: Pair, samples: list[list[int]]) -> None:
    firsts = [s[0] for s in samples]
    tokens, counts = np.unique(firsts, return_counts=True)
    expected = counts @ target_distributions(llama, [[*PROMPT, int(token)] for token in tokens], TEMPERATURE)
    observed = np.bincount([s[1] for s in samples], minlength=VOCABULARY)
    assert chi_squared_p(observed, expected) > 1e-3


def test_the_statistical_test_would_notice_another_temperature(llama: Pair, samples: list[list[int]]) -> None:
    first = target_distributions(llama, [list(PROMPT)], TEMPERATURE)[0]
    other = target_distributions(llama, [list(PROMPT)], TEMPERATURE * 1.25)[0]
    observed = np.bincount([s[0] for s in samples], minlength=VOCABULARY)
    assert chi_squared_p(observed, first * len(samples)) > 1e-3
    assert chi_squared_p(observed, other * len(samples)) < 1e-6


def test_architecture_k_and_batch_do_not_change_a_sample(llama: Pair) -> None:
    requests = tuple(dataclasses.replace(r, temperature=0.9, seed=2) for r in random_requests(10, seed=4))
    outputs = [
        served(architecture.replace(draft_length=FixedDraftLength(k)), llama, requests, concurrency)
        for architecture, k, concurrency in zip(ARCHITECTURES.values(), (1, 4, 7, 0), (1, 10, 4, 6), strict=True)
    ]
    assert outputs[0] == outputs[1] == outputs[2] == outputs[3]


def test_another_seed_gives_another_sample(llama: Pair) -> None:
    def outputs(seed: int) -> dict[int, list[int]]:
        requests = (Request(0, 4, 20, prompt=PROMPT, temperature=1.0, seed=seed),)
        return served(PDV, llama, requests, 1)

    assert outputs(1) == outputs(1)
    assert outputs(1) != outputs(2)


def test_greedy_and_sampled_requests_share_a_batch(llama: Pair) -> None:
    greedy = random_requests(4, seed=6)
    mixed = tuple(dataclasses.replace(r, temperature=0.7 * (r.id % 2)) for r in greedy)
    alone, together = served(PDV, llama, greedy, 1), served(PDV, llama, mixed, 4)
    assert all(alone[r.id] == together[r.id] for r in mixed if r.temperature == 0)


def test_noise_is_gumbel_and_keyed() -> None:
    keys = torch.tensor([request_key(1, i) for i in range(400)])
    noise = gumbel(keys, torch.arange(400), 50)
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    again = gumbel(keys[7:8], torch.tensor([7]), 50)
    assert torch.equal(noise[7:8], again)
    assert abs(np.corrcoef(noise[:-1].flatten(), noise[1:].flatten())[0, 1]) < 0.03


def test_noise_is_finite_at_its_extremes_and_over_large_vocabularies(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = gumbel(torch.tensor([request_key(0, i) for i in range(200)]), torch.arange(200), 32_000)
    assert noise.isfinite().all()
    for extreme in (0, -1):  # all bits of the hash clear, all set
        monkeypatch.setattr(verification, "_mix", lambda value, bits=extreme: torch.full_like(value, bits))
        assert gumbel(torch.tensor([1]), torch.tensor([1]), 2).isfinite().all()


def test_a_token_of_no_probability_is_never_sampled() -> None:
    logits = torch.full((50, 32_000), -1e4)  # rows that fit a cache, again and again
    logits[:, 7] = 50.0
    for rows in torch.arange(2000).split(50):
        assert (pick(logits, torch.ones(50), rows * 977, rows) == 7).all()


def test_neighbouring_seeds_and_requests_do_not_share_noise() -> None:
    keys = [request_key(seed, request) for seed in range(8) for request in range(8)]
    rows = gumbel(torch.tensor(keys).repeat_interleave(40), torch.arange(40).repeat(len(keys)), 4)
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_pick_mixes_greedy_and_sampled_rows() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]]).repeat(500, 1)
    temperatures = torch.tensor([0.0, 1.0]).repeat(250)
    picked = pick(logits, temperatures, torch.arange(500), torch.arange(500))
    assert (picked[::2] == 1).all()
    shares = torch.bincount(picked[1::2], minlength=3) / 250
    assert torch.allclose(shares, torch.softmax(logits[0], -1), atol=0.07)


def test_padding_never_matches() -> None:
    drafts = torch.tensor([[5, 6, 7], [5, 6, 7], [1, 6, 7]])
    matched = count_matches(drafts, torch.tensor([[5, 6, 7]]).expand(3, 3), torch.tensor([3, 2, 3]))
    assert matched.tolist() == [3, 2, 0]
