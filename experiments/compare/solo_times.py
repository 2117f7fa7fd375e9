"""What a live run cannot know by itself: how long its segments would have taken alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from engines.errors import InputError
from engines.policy.architecture import Segment
from engines.policy.segment_shape import SegmentShape
from engines.record.run import Run
from sim.costs import CostModel

SHAPE = list(SegmentShape._fields)


def with_solo_times(run: Run, costs: CostModel) -> Run:
    """A copy whose spans know their mean solo time from the profile, where the run does not know it.

    Contention and whatever else made a live segment longer than in the calibration then shows as a part of the
    latency. It is signed: a segment that ran faster than the profile's mean gives a negative part. What the costs
    refuse, a draft length that was never measured, say, stays unknown (nan).
    """
    unknown = run.spans["solo_s"].isna()
    if not unknown.any():
        return run
    shapes = run.spans.loc[unknown, SHAPE].drop_duplicates()
    shapes["known_s"] = [
        _solo_s(costs, SegmentShape(Segment(segment), *sizes)) for segment, *sizes in shapes.itertuples(index=False)
    ]
    known = run.spans.merge(shapes, on=SHAPE, how="left")["known_s"].to_numpy()
    solo = np.where(unknown, known, run.spans["solo_s"])
    return dataclasses.replace(run, spans=run.spans.assign(solo_s=pd.Series(solo, index=run.spans.index)))


def _solo_s(costs: CostModel, shape: SegmentShape) -> float:
    try:
        return costs.cost(shape).duration_s
    except InputError:
        return float("nan")
