"""Made-up profiles with known formulas behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from calibrate.contention import RunningSegment
from calibrate.profile import ACCEPTANCE_COLUMNS, CONTENTION_COLUMNS, HOST_COLUMNS, STAGE_COST_COLUMNS, Profile
from engines.policy.architecture import Segment, Step

KERNELS = {Segment.PREFILL_DRAFT: 374, Segment.PREFILL_TARGET: 544, Segment.DRAFT: 374, Segment.VERIFY: 544}
SPREAD = np.array([0.9, 0.95, 1.0, 1.05, 1.1])
INFO: dict[str, Any] = {
    "device": "made up", "pair": "made up", "dtype": "float32", "date": "2026-11-23", "command": "none",
    "versions": {"python": "3.12"}, "max_context": 2048, "draft_length": 4,
}  # fmt: skip


def duration_ms(segment: Segment, batch: int, draft_length: int, tokens: int, context: float) -> float:
    """Linear in requests, tokens and cache reads: what interpolation must meet exactly."""
    if segment is Segment.DRAFT:
        return draft_length * (1.0 + 0.05 * batch + batch * context * 1e-5)
    if segment is Segment.VERIFY:
        return 5.0 + 0.02 * tokens + batch * context * 1e-4
    return (0.5 if segment is Segment.PREFILL_DRAFT else 2.0) * (1.0 + 0.01 * tokens)


def stage_costs(batches: tuple[int, ...] = (1, 4, 16), lengths: tuple[int, ...] = (0, 2, 8)) -> pd.DataFrame:
    points = [(segment, 1, 0, tokens, 0) for segment in list(Segment)[:2] for tokens in (16, 128, 1024)]
    for k in lengths:
        for batch in batches:
            for context in (64, 512, 2048):
                points += [(Segment.DRAFT, batch, k, batch * k, context)] if k else []
                points.append((Segment.VERIFY, batch, k, batch * (k + 1), context))
    rows = []
    for segment, batch, k, tokens, context in points:
        mean = duration_ms(segment, batch, k, tokens, context)
        kernels = KERNELS[segment] * (k if segment is Segment.DRAFT else 1)
        rows.append((str(segment), batch, k, tokens, context, kernels, 50, *(SPREAD * mean), mean))
    return pd.DataFrame(rows, columns=STAGE_COST_COLUMNS)


def contention(groups: dict[str, list[tuple[Segment, float, float]]]) -> pd.DataFrame:
    """group -> its streams as (segment, kernel duration in ms, rate)."""
    rows = [
        (group, str(segment), 4, 4, 16, 256, kernel_ms * KERNELS[segment], KERNELS[segment], rate)
        for group, streams in groups.items()
        for segment, kernel_ms, rate in streams
    ]
    return pd.DataFrame(rows, columns=CONTENTION_COLUMNS)


def fair_shares(total: float) -> pd.DataFrame:
    """A device that gives every stream the same rate, `total` together."""
    kinds = (Segment.DRAFT, Segment.VERIFY, Segment.PREFILL_TARGET)
    pairs = [(a, b) for a in kinds for b in kinds if a < b]
    groups = {"+".join(s): [(segment, 0.02, total / len(s)) for segment in s] for s in (*pairs, kinds)}
    return contention(groups)


def host_laws(
    before: float, per_request: float = 0.0, wake_up: float = 0.0, beside: float = 0.0, after: float = 0.0
) -> pd.DataFrame:
    """The same law for every step, ms."""
    law = (before, per_request, wake_up, beside, after, 0.0)
    return pd.DataFrame([(str(step), *law) for step in Step], columns=HOST_COLUMNS)


def made_up(**tables: Any) -> Profile:
    """A valid profile; keywords replace info or a table."""
    acceptance = pd.DataFrame([(i, 0.8**i, 20, 0.8, 0.1) for i in range(1, 5)], columns=ACCEPTANCE_COLUMNS)
    given = {
        "stage_costs": stage_costs(),
        "host_times": host_laws(before=0.03, wake_up=0.05, after=0.02),
        "contention": fair_shares(1.2),
        "acceptance": acceptance,
        "info": dict(INFO),
    }
    return Profile(**{**given, **tables})


def running(table: pd.DataFrame) -> list[RunningSegment]:
    """A contention group as what the model is asked about."""
    return [
        RunningSegment(Segment(row.segment), int(row.batch_size), row.solo_ms / row.kernels)
        for row in table.itertuples()
    ]
