"""What a draft length per request could gain at most over one draft length per batch, from measured costs.

Half of a batch's requests have one acceptance, half another, and both are known. One length: the k with the most
expected tokens per second. Two lengths: the best pair of k, in an engine that loses nothing to it: drafts beyond the
shorter k are made for half of the batch, and verify takes as long as one of as many tokens. Batches are not padded.

Example: python -m experiments.bench.request_draft_lengths --profile results/h100/speculation/profile
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from calibrate.profile import Profile
from engines.policy.architecture import Step
from engines.policy.segment_shape import SegmentShape
from experiments.compare.report import results_console
from sim.cost_protocols import Costs
from sim.costs import CostModel

BATCHES = (2, 4, 16, 64)
ALPHAS = ((0.3, 0.9), (0.5, 0.9), (0.3, 0.7), (0.6, 0.8))
CONTEXT_TOKENS = 192.0


class Best(NamedTuple):
    """The best draft lengths of the two halves of a batch, and their expected tokens per second."""

    lengths: tuple[int, int]
    tokens_per_s: float


def emitted(alpha: float, k: int) -> float:
    """Return the expected tokens of one step of one request."""
    return sum(alpha**i for i in range(k + 1))


def tokens_per_s(costs: Costs, batch: int, alphas: tuple[float, float], lengths: tuple[int, int]) -> float:
    """Return the expected tokens per second of a batch whose halves have these acceptances and draft lengths."""
    half, short, long = batch // 2, min(lengths), max(lengths)

    def draft_s(requests: int, k: int) -> float:
        return costs.cost(SegmentShape.draft(requests, k, CONTEXT_TOKENS), None).duration_s if k else 0.0

    def verify_s(k: int) -> float:
        return costs.cost(SegmentShape.verify(batch, k, CONTEXT_TOKENS), None).duration_s

    below, above = divmod(sum(lengths), 2)  # verify between two whole mean lengths is interpolated
    verify = verify_s(below) if not above else (verify_s(below) + verify_s(below + 1)) / 2
    drafts = draft_s(batch, short) + draft_s(half, long) - draft_s(half, short)
    host = sum(costs.host_s(Step.DRAFT_VERIFY if long else Step.VERIFY, batch, True, 0))
    return half * sum(map(emitted, alphas, lengths)) / (drafts + verify + host)


def best(costs: Costs, batch: int, alphas: tuple[float, float], pairs: Iterable[tuple[int, int]]) -> Best:
    """Return the best of these pairs of draft lengths."""
    return max((Best(pair, tokens_per_s(costs, batch, alphas, pair)) for pair in pairs), key=lambda b: b.tokens_per_s)


def table(costs: Costs, longest: int) -> Table:
    """Return the gain for every batch and pair of acceptances. longest: the largest k."""
    found = Table(
        "alphas", "requests", "one k", "tokens/s", "two k", "tokens/s", "gain", title="k per batch, per request"
    )
    lengths = range(longest + 1)
    for alphas, batch in product(ALPHAS, BATCHES):
        one = best(costs, batch, alphas, ((k, k) for k in lengths))
        two = best(costs, batch, alphas, product(lengths, lengths))
        found.add_row(
            ", ".join(map(str, alphas)), f"{batch}", f"{one.lengths[0]}", f"{one.tokens_per_s:,.0f}",
            ", ".join(map(str, two.lengths)), f"{two.tokens_per_s:,.0f}",
            f"{two.tokens_per_s / one.tokens_per_s - 1:+.1%}",
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, required=True, help="folder of the profile")
    parser.add_argument("--longest", type=int, default=8, help="largest draft length (default 8)")
    given = parser.parse_args()
    results_console().print(table(CostModel(Profile.load(given.profile)), given.longest))


if __name__ == "__main__":
    main()
