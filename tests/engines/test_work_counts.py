"""Bytes and operations of a segment equal a count of its passes one by one."""

from __future__ import annotations

import pytest

from engines.policy.architecture import PD, Segment
from engines.policy.request import Request
from engines.policy.scheduler import Scheduler
from engines.policy.segment_shape import SegmentShape
from engines.record.roofline import Ceilings, ModelCounts, PairCounts, WorkCounts, achieved, count_spans, count_work
from tests.driver import drive

# Llama-2-7B and TinyLlama-1.1B in bfloat16
TARGET = ModelCounts(6_738_415_616 - 2 * 32_000 * 4096, 32_000 * 4096, 32, 32, 32, 128, 2)
DRAFT = ModelCounts(1_100_048_384 - 2 * 32_000 * 2048, 32_000 * 2048, 22, 32, 4, 64, 2)
PAIR = PairCounts(TARGET, DRAFT)
H100 = Ceilings(3.0e12, 790e12)


def passes(model: ModelCounts, feeds: list[tuple[int, int]], batch: int, all_rows: bool = True) -> WorkCounts:
    """Count passes that feed (tokens, after so many) of each of `batch` sequences, token by token."""
    cache = attention = matrices = 0
    for new, before in feeds:
        for token in range(new):
            attention += batch * model.layers * 4 * model.heads * model.head_dim * (before + token + 1)
            matrices += batch * 2 * model.layer_parameters
            matrices += batch * 2 * model.head_parameters if all_rows or token == new - 1 else 0
        cache += batch * (before + new + new) * model.token_bytes
    return WorkCounts(len(feeds) * model.weight_bytes, cache, matrices, attention)


def count(shape: SegmentShape) -> WorkCounts:
    return count_work(shape.segment, PAIR, shape.columns)


@pytest.mark.parametrize(("batch", "k", "context"), [(1, 1, 2), (8, 4, 400), (64, 8, 1000)])
def test_draft_and_verify_are_the_sum_of_their_passes(batch: int, k: int, context: int) -> None:
    drafts = [(2, context - 2)] + [(1, context + i - 1) for i in range(1, k)]
    assert count(SegmentShape.draft(batch, k, context)) == passes(DRAFT, drafts, batch)
    assert count(SegmentShape.verify(batch, k, context)) == passes(TARGET, [(k + 1, context - 1)], batch)


def test_prefill_is_one_pass_over_the_prompts() -> None:
    counted = count(SegmentShape.prefill(Segment.PREFILL_TARGET, 3, 3 * 128))
    assert counted == passes(TARGET, [(128, 0)], 3, all_rows=False)
    draft = count(SegmentShape.prefill(Segment.PREFILL_DRAFT, 1, 77))
    assert draft == passes(DRAFT, [(77, 0)], 1, all_rows=False)


@pytest.mark.parametrize(
    ("shape", "floor_ms"),
    [
        (SegmentShape.draft(8, 4, 400), 2.9),
        (SegmentShape.draft(64, 4, 400), 3.5),
        (SegmentShape.verify(8, 4, 400), 5.1),
        (SegmentShape.verify(64, 4, 400), 9.8),
    ],
)
def test_floors_on_an_h100_are_those_worked_out_by_hand(shape: SegmentShape, floor_ms: float) -> None:
    floor_s = H100.floor_s(count(shape))
    assert 1e3 * float(floor_s) == pytest.approx(floor_ms, rel=0.05)


def test_a_run_s_totals_and_rates() -> None:
    requests = [Request(i, 100, 20) for i in range(6)]
    run = drive(Scheduler(PD), requests, lambda work: 0.01)
    counts = count_spans(run.spans, PAIR)
    row = run.spans[run.spans["segment"] == "verify"].iloc[-1]
    one = count_work(Segment.VERIFY, PAIR, row)
    assert counts.loc[row.name].tolist() == pytest.approx(list(one))
    rates = achieved(run, PAIR, H100)
    moved = counts["weight_bytes"].sum() + counts["cache_bytes"].sum()
    assert rates["tb_per_s"] * 1e12 * run.duration_s == pytest.approx(moved)
    assert rates["bandwidth_share"] == pytest.approx(moved / run.duration_s / 3.0e12)
    verify = run.spans[run.spans["segment"] == "verify"]
    computed = counts.loc[verify.index, ["matrix_operations", "attention_operations"]].to_numpy().sum()
    seconds = (verify["end_s"] - verify["start_s"]).sum()
    assert rates["verify.tflop_per_s"] * 1e12 == pytest.approx(computed / seconds)
    floor_s = sum(float(H100.floor_s(WorkCounts(*row))) for row in counts.itertuples(index=False))
    assert rates["floor_share"] == pytest.approx(floor_s / run.duration_s)
    assert "bandwidth_share" not in achieved(run, PAIR)
