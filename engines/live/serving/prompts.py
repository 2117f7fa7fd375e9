"""Prompts for a pair."""

from __future__ import annotations

from engines.live.model.pairs import Pair
from engines.pairs.permutation import PREFIX, parse_pair
from engines.pairs.prompts import permutation_prompts
from engines.workload.workload import Workload, with_prompts, with_random_prompts


def prompts_for(pair: Pair, workload: Workload, seed: int) -> Workload:
    """Return the workload with prompts of real text or, if the pair has no tokenizer, of random tokens.

    Those of a permutation pair may have a chosen acceptance (engines.pairs.prompts). Raises InputError.
    """
    if pair.name.startswith(PREFIX):
        return permutation_prompts(workload, parse_pair(pair.name), seed)
    if pair.encode is not None:
        return with_prompts(workload, pair.encode, seed)
    return with_random_prompts(workload, pair.vocabulary, seed)
