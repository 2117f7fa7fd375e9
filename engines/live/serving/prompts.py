"""Prompts that a pair can read."""

from __future__ import annotations

from engines.live.model.pairs import Pair
from engines.workload.workload import Workload, with_prompts, with_random_prompts


def prompts_for(pair: Pair, workload: Workload, seed: int) -> Workload:
    """The workload with real text where the pair has a tokenizer, with random tokens where it has none."""
    if pair.encode is not None:
        return with_prompts(workload, pair.encode, seed)
    return with_random_prompts(workload, pair.vocabulary, seed)
