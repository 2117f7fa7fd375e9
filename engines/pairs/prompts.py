"""Prompts of random tokens for permutation pairs."""

from __future__ import annotations

import dataclasses

import numpy as np

from engines.errors import InputError
from engines.pairs.permutation import PermutationSpec, make_cycle
from engines.workload.workload import Workload, random_prompts, with_random_prompts


def permutation_prompts(workload: Workload, spec: PermutationSpec, seed: int) -> Workload:
    """Return the workload with prompts of random tokens, which end in `last_tokens`. Raises InputError."""
    last = last_tokens(workload, spec, seed)
    prompted = with_random_prompts(workload, spec.target_shape.vocabulary, seed)
    requests = tuple(
        dataclasses.replace(request, prompt=(*(request.prompt or ())[:-1], token))
        for request, token in zip(prompted.requests, last, strict=True)
    )
    return dataclasses.replace(prompted, requests=requests)


def last_tokens(workload: Workload, spec: PermutationSpec, seed: int) -> list[int]:
    """Return the last token of each request's prompt, on which its output depends.

    If the info of the workload has an `alpha`, all outputs lie in the region of the pair with this acceptance: the
    token is drawn from there. Raises InputError if the pair has no such region, or if an output is longer than the
    region.
    """
    alpha = workload.info.get("alpha")
    if alpha is None:
        return [int(prompt[-1]) for prompt in random_prompts(workload, spec.target_shape.vocabulary, seed)]
    check_alpha(alpha, spec)
    order = make_cycle(spec).order
    region = np.array_split(np.arange(len(order)), len(spec.alphas))[spec.alphas.index(alpha)]
    longest = max(request.max_tokens for request in workload.requests)
    if longest >= len(region):
        remedy = f"the region of alpha {alpha:g} has {len(region)} tokens; ask for fewer output tokens"
        raise InputError("output_tokens", longest, remedy)
    starts = np.random.default_rng([seed, 1]).random(len(workload.requests)) * (len(region) - longest)
    last: list[int] = order[region[starts.astype(int)]].tolist()
    return last


def check_alpha(alpha: float, spec: PermutationSpec) -> None:
    """Raise InputError unless the pair has a region with this acceptance."""
    if alpha not in spec.alphas:
        known = ", ".join(f"{each:g}" for each in spec.alphas)
        raise InputError("workload.alpha", alpha, f"the pair {spec.name} has {known}; use one of them")
