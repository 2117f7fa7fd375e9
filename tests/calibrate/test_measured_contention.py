"""The correction of the contention law keeps to what was measured, and to the law where nothing was."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from calibrate.contention import RunningSegment, fit_contention, leave_one_group_out, running_segments
from calibrate.measured_contention import measured_contention
from engines.policy.architecture import Segment
from engines.policy.segment_shape import SegmentShape

BATCHES = (1, 4, 8, 12, 16, 32, 64)
KERNELS = 100


def verify_ms(batch: int) -> float:
    """A GPU that changes to smaller kernels above 60 tokens, as an H100 does."""
    return (5.0 + 0.05 * batch) * (1.0 if batch <= 12 else 0.5)


def rates(draft: int, verify: int) -> tuple[float, float]:
    """No power law: shares that jump with the kernels of the verify."""
    share = 0.25 if verify <= 12 else 0.5
    return share + 0.01 * np.log2(draft), 0.95 - share - 0.01 * np.log2(verify)


def table(batches: tuple[int, ...] = BATCHES) -> pd.DataFrame:
    rows = []
    for n, m in itertools.product(batches, batches):
        shapes = SegmentShape.draft(n, 4, 100), SegmentShape.verify(m, 4, 100)
        for shape, solo_ms, rate in zip(shapes, (4.0 + 0.02 * n, verify_ms(m)), rates(n, m), strict=True):
            kernels = KERNELS if shape.segment is Segment.DRAFT or m <= 12 else 2 * KERNELS
            group = f"draft{n}+verify{m}"
            rows.append({"group": group, **shape.columns, "solo_ms": solo_ms, "kernels": kernels, "rate": rate})
    return pd.DataFrame(rows)


def test_measured_combinations_get_their_measured_rates() -> None:
    measured = table()
    model = measured_contention(measured)
    for _, group in measured.groupby("group"):
        assert model.rates(running_segments(group)) == pytest.approx(group["rate"].tolist(), abs=0.01)
    law = fit_contention(measured)
    assert law.mean_absolute_error > 0.02  # which the law alone does not manage


def test_combinations_between_the_measured_ones_are_better_than_the_law_and_follow_the_kernels() -> None:
    measured = table()
    of_law, corrected = (
        leave_one_group_out(measured, fit)["error"].abs().mean() for fit in (fit_contention, measured_contention)
    )
    assert corrected < of_law / 3
    draft, before = SegmentShape.draft(8, 4, 100), SegmentShape.verify(11, 4, 100)
    together = [
        RunningSegment(draft.segment, draft.rows, (4.0 + 0.02 * 8) / KERNELS),
        RunningSegment(before.segment, before.rows, verify_ms(11) / KERNELS),
    ]
    assert measured_contention(measured).rates(together)[0] == pytest.approx(rates(8, 11)[0], abs=0.02)


def test_the_order_of_the_segments_does_not_matter() -> None:
    measured = table()
    model = measured_contention(measured)
    running = running_segments(measured[measured["group"] == "draft4+verify32"])
    assert model.rates(running[::-1]) == pytest.approx(model.rates(running)[::-1])


def test_beyond_the_measured_sizes_the_correction_at_the_edge_holds() -> None:
    measured = table()
    model, law = measured_contention(measured), fit_contention(measured)

    def correction(rows: int) -> float:
        running = [RunningSegment(Segment.DRAFT, 1, 0.04), RunningSegment(Segment.VERIFY, rows, verify_ms(64) / 200)]
        return model.rates(running)[0] - law.rates(running)[0]

    assert correction(10_000) == pytest.approx(correction(64 * 5), abs=1e-6)
    assert abs(correction(64 * 5)) > 1e-4


def test_kinds_that_were_not_measured_together_follow_the_law() -> None:
    measured = table()
    running = [RunningSegment(Segment.PREFILL_TARGET, 256, 0.05), RunningSegment(Segment.VERIFY, 40, 0.05)]
    assert measured_contention(measured).rates(running) == pytest.approx(fit_contention(measured).rates(running))
    assert measured_contention(measured).rates(running[:1]) == [1.0]


def test_rates_stay_between_nothing_and_full_speed() -> None:
    measured = table((1, 64))
    measured.loc[measured["segment"] == "verify", "rate"] = 1.0
    model = measured_contention(measured)
    for n, m in itertools.product((1, 2, 16, 64), (1, 8, 64)):
        running = [RunningSegment(Segment.DRAFT, n, 0.04), RunningSegment(Segment.VERIFY, 5 * m, 0.05)]
        assert all(0 < rate <= 1 for rate in model.rates(running))
