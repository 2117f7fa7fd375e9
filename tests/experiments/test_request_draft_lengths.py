"""What a draft length per request could gain, on a device with formulas for its times."""

from __future__ import annotations

import pytest
from rich.console import Console

from engines.policy.architecture import Segment, Step
from engines.policy.segment_shape import SegmentShape
from experiments.bench.request_draft_lengths import ALPHAS, BATCHES, best, emitted, table, tokens_per_s
from sim.costs import SegmentCost

WEIGHTS_S, ROW_S, PASS_S, DRAFT_ROW_S, HOST_S = 5e-3, 3e-5, 5e-4, 1e-5, 5e-4


class Formula:
    """A verify waits for weights and then computes rows; a draft makes k passes."""

    contention = captured = None

    def cost(self, shape: SegmentShape, quantile: float | None) -> SegmentCost:
        if shape.segment is Segment.DRAFT:
            return SegmentCost(shape.draft_length * (PASS_S + DRAFT_ROW_S * shape.batch_size), 0.0)
        return SegmentCost(WEIGHTS_S + ROW_S * shape.tokens, 0.0)

    def host_s(self, step: Step, batch_size: int, back_to_back: bool, beside: int) -> tuple[float, float]:
        return (HOST_S, HOST_S) if step is Step.DRAFT_VERIFY else (HOST_S, 0.0)


def test_the_longer_drafts_are_made_for_half_and_verify_takes_as_long_as_its_tokens() -> None:
    asked = tokens_per_s(Formula(), 8, (0.5, 0.9), (1, 4))
    seconds = 4 * PASS_S + (8 + 3 * 4) * DRAFT_ROW_S + WEIGHTS_S + (4 * 2 + 4 * 5) * ROW_S + 2 * HOST_S
    assert asked == pytest.approx(4 * (1.5 + sum(0.9**i for i in range(5))) / seconds)
    assert tokens_per_s(Formula(), 8, (0.5, 0.9), (0, 0)) == pytest.approx(8 / (WEIGHTS_S + 8 * ROW_S + HOST_S))
    assert emitted(1.0, 3) == 4


def test_two_lengths_pay_where_rows_cost_and_acceptance_differs() -> None:
    pairs = [(one, two) for one in range(9) for two in range(9)]
    for batch, alphas, pays in ((64, (0.3, 0.9), True), (2, (0.6, 0.6), False)):
        one = best(Formula(), batch, alphas, [pair for pair in pairs if pair[0] == pair[1]])
        two = best(Formula(), batch, alphas, pairs)
        assert (two.tokens_per_s > 1.05 * one.tokens_per_s) == pays
        assert (two.lengths[0] < two.lengths[1]) == pays


def test_the_table_has_every_mix_and_batch() -> None:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(table(Formula(), 8))
    assert capture.get().count("%") == len(ALPHAS) * len(BATCHES)
