"""Add solo times from a profile to live runs, which cannot measure them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from engines.errors import InputError
from engines.policy.architecture import Architecture, Segment
from engines.policy.captured_sizes import CapturePlan, capture_plans, prefill_tokens_of
from engines.policy.segment_shape import SegmentShape
from engines.record.run import Run
from sim.costs import CostModel

SHAPE = list(SegmentShape._fields)


def with_solo_times(run: Run, costs: CostModel) -> Run:
    """Return a copy whose missing solo times are the mean durations of the profile.

    Contention, and anything else that made a live segment longer than in the calibration, then shows as a part of the
    latency. This part is negative if a segment ran faster than the profile's mean. Solo times that the costs refuse,
    such as for a draft length that was never measured, stay nan.
    """
    unknown = run.spans["solo_s"].isna()
    if not unknown.any():
        return run
    architecture = Architecture.from_dict(run.info["architecture"])
    longest = max(1, int(run.requests["prompt_tokens"].max()))
    tokens = run.info.get("prefill_tokens") or prefill_tokens_of(architecture, longest)
    plans = capture_plans(architecture, tokens, costs.captured)
    shapes = run.spans.loc[unknown, ["stream", *SHAPE]].drop_duplicates()
    shapes["known_s"] = [
        _solo_s(costs, plans.get(stream), SegmentShape(Segment(segment), *sizes))
        for stream, segment, *sizes in shapes.itertuples(index=False)
    ]
    known = run.spans.merge(shapes, on=["stream", *SHAPE], how="left")["known_s"].to_numpy()
    solo = np.where(unknown, known, run.spans["solo_s"])
    return dataclasses.replace(run, spans=run.spans.assign(solo_s=pd.Series(solo, index=run.spans.index)))


def _solo_s(costs: CostModel, plan: CapturePlan | None, shape: SegmentShape) -> float:
    try:
        return costs.cost(shape if plan is None else plan.padded(shape)).duration_s
    except InputError:
        return float("nan")
