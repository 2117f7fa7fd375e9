"""How long a segment takes alone: a profile's measured points, interpolated.

The points of each segment form a grid over (draft length, batch, load), where load is the tokens of all prompts for
prefill and the mean context for draft and verify. Between points a cost is piecewise linear in each of the three,
so what is linear in prompts, prompt tokens, drafts or cache reads is met exactly.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd

from calibrate.contention import NoContention
from calibrate.measured_contention import measured_contention
from calibrate.profile import QUANTILES, Profile
from engines.errors import InputError
from engines.policy.architecture import Segment, Step
from engines.policy.segment_shape import SegmentShape
from sim.cost_protocols import Contention, SegmentCost

_new: Final = tuple.__new__  # makes a named tuple in half the time that calling its class takes
TOLERANCE = 0.1  # how far past the largest measured value a cost is still given, as a fraction of it
REMEDY = "calibrate over a wider range, or allow extrapolation"
ONE_VALUE = "one value cannot be extrapolated; use it, or calibrate at two or more"


class CostModel:
    """Durations of a profile.

    Raises InputError for what lies outside the measured range: a draft length below or above it, or a batch,
    prompt or context more than 10% above it. extrapolate=True goes on along the last line instead; a line that falls
    holds its last value, and what was measured at one value only is refused still. Below the smallest measured
    batch, prompt or context (and draft length, where it is given) the first line goes on, kept between a constant
    cost and a proportional one.

    contention: None takes the profile's table; NoContention() switches the slowdown off.
    """

    def __init__(self, profile: Profile, extrapolate: bool = False, contention: Contention | None = None) -> None:
        self.contention: Contention = measured_contention(profile.contention) if contention is None else contention
        known = ("device", "pair", "pair_models", "dtype", "date")
        self._info = {name: profile.info[name] for name in known if name in profile.info}
        self.extrapolate = extrapolate
        self.captured = profile.captured
        seconds = (profile.host_times.set_index("step") / 1e3).itertuples()
        self._host_s = {Step(step): law for step, *law in seconds}
        self._grids = {
            segment: _Grid(segment, rows, extrapolate)
            for segment, rows in ((s, profile.stage_costs[profile.stage_costs["segment"] == s]) for s in Segment)
        }
        self._lines: dict[tuple[Segment, int, int], _Line] = {}
        self._profile = profile

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._profile, self.extrapolate, self.contention)

    def cost(self, shape: SegmentShape, quantile: float | None = None) -> SegmentCost:
        """quantile: from 0 to 1. The mean over a uniform quantile is the mean duration."""
        segment, batch_size, draft_length, tokens, context_tokens = shape
        line = self._lines.get((segment, batch_size, draft_length))
        if line is None:
            line = self._grids[segment].line(batch_size, draft_length)
            self._lines[segment, batch_size, draft_length] = line
        return line.at(tokens if line.by_tokens else context_tokens, quantile)

    def covered(self, segment: Segment) -> dict[str, tuple[float, float]]:
        grid = self._grids[segment]
        return dict(zip(grid.names, grid.covered, strict=True))

    def beyond(self, shape: SegmentShape) -> tuple[str, ...]:
        segment, batch_size, draft_length, tokens, context_tokens = shape
        grid = self._grids[segment]
        least, longest, largest, most = grid.limits
        load = tokens if grid.by_tokens else context_tokens
        if least <= draft_length <= longest and batch_size <= largest and load <= most:
            return ()
        outside = (not least <= draft_length <= longest, batch_size > largest, load > most)
        return tuple([name for name, beyond in zip(grid.names, outside, strict=True) if beyond])

    def host_s(self, step: Step, batch_size: int, back_to_back: bool, beside: int) -> tuple[float, float]:
        before, per_request, wake_up, per_other, after, after_per_request = self._host_s[step]
        if not back_to_back:
            before = max(0.0, before + wake_up)
        return before + per_request * batch_size + per_other * beside, after + after_per_request * batch_size

    def describe(self) -> dict[str, object]:
        contention = "none" if isinstance(self.contention, NoContention) else "measured"
        return {**self._info, "extrapolate": self.extrapolate, "contention": contention}


class _Grid:
    """One segment's points as a full grid: values[draft length, batch, load] = (duration_s, kernel_ms) and
    spread[draft length, batch, load] = the measured quantiles as ratios to the mean.

    by_tokens: the load is the tokens of all prompts, not the mean context. measured, covered: the least and the most
    of each axis that was measured, and for which a cost is given without extrapolation. limits: of these, the least
    and the most drafts, the most requests and the most load.
    """

    def __init__(self, segment: Segment, rows: pd.DataFrame, extrapolate: bool) -> None:
        self.by_tokens = segment.startswith("prefill")
        load_name = "tokens" if self.by_tokens else "context_tokens"
        self.segment = segment
        self.extrapolate = extrapolate
        self.names = ("draft_length", "batch_size", load_name)
        load = rows[load_name]
        points = np.column_stack([rows["draft_length"], rows["batch_size"], load]).astype(float)
        mean_s = rows["mean_ms"].to_numpy(float) / 1e3
        values = np.column_stack([mean_s, rows["mean_ms"] / rows["kernels"]])
        spread = rows[list(QUANTILES)].to_numpy(float) / rows["mean_ms"].to_numpy(float)[:, None]
        self.axes = [sorted(set(points[:, i].tolist())) for i in range(3)]
        self.measured = [(axis[0], axis[-1]) for axis in self.axes]
        self.covered = [self.measured[0], *((-math.inf, high * (1 + TOLERANCE)) for _, high in self.measured[1:])]
        (least, longest), (_, largest), (_, most) = self.covered
        self.limits = least, longest, largest, most
        self.values, nearest = _filled(points, values, self.axes)
        self.spread = spread[nearest]
        for axis in (1, 2):
            self._go_on_to_zero(axis)

    def _go_on_to_zero(self, axis: int) -> None:
        """Below the smallest measured value the first line goes on, between constant and proportional."""
        places, values = self.axes[axis], np.moveaxis(self.values, axis, 0)
        if places[0] == 0:
            return
        at_zero = values[0]
        if len(places) > 1:
            slope = (values[1] - values[0]) / (places[1] - places[0])
            at_zero = np.clip(values[0] - slope * places[0], 0.0, values[0])
        self.axes[axis] = [0.0, *places]
        self.values = np.moveaxis(np.concatenate([at_zero[None], values]), 0, axis)
        spread = np.moveaxis(self.spread, axis, 0)
        self.spread = np.moveaxis(np.concatenate([spread[:1], spread]), 0, axis)

    def line(self, batch: int, draft_length: int) -> _Line:
        """Cost against load, for one batch size and draft length."""
        values, spread = self.values, self.spread
        for axis, asked in enumerate((draft_length, batch)):
            self.check(axis, asked)
            i, part = _place(self.axes[axis], asked)
            if len(self.axes[axis]) == 1:
                values, spread = values[0], spread[0]
                continue
            low, high = values[i], values[i + 1]
            values = low * (1 - part) + high * part
            if part > 1:
                values = np.maximum(values, high)
            elif part < 0:
                values = np.clip(values, low * asked / self.axes[axis][0], low)
            spread = spread[i + (part > 0.5)]
        return _Line(self, values, spread)

    def check(self, axis: int, asked: int | float) -> None:
        """Raises InputError for a value outside the measured range, unless extrapolation was asked for and two or
        more values were measured."""
        (least, most), (low, high) = self.covered[axis], self.measured[axis]
        if least <= asked <= most or (self.extrapolate and low < high):
            return
        values, remedy = (f"{low:g} to {high:g}", REMEDY) if low < high else (f"{low:g} only", ONE_VALUE)
        measured = f"the profile measured {self.segment} at {self.names[axis]} {values}"
        raise InputError(f"{self.segment} {self.names[axis]}", asked, f"{measured}; {remedy}")


class _Line:
    """Cost against load; what the simulation asks for again and again, so it is plain Python.

    by_tokens: see _Grid.
    """

    __slots__ = ("_grid", "_last", "_parts", "_places", "_unchecked", "by_tokens")

    def __init__(self, grid: _Grid, values: np.ndarray, spread: np.ndarray) -> None:
        self.by_tokens = grid.by_tokens
        self._grid = grid
        self._places: list[float] = grid.axes[2]
        goes_on = grid.extrapolate and grid.measured[2][0] < grid.measured[2][1]
        self._unchecked = math.inf if goes_on else self._places[-1]  # the largest load that needs no check
        costs, jitter = values.tolist(), [_Jitter(ratios) for ratios in spread.tolist()]
        if len(costs) == 1:  # the same at any load
            costs, jitter = costs * 2, jitter * 2
        ends = [*self._places, self._places[0] + 1.0][: len(costs)]
        self._parts = [
            (low_at, high_at - low_at, low[0], high[0] - low[0], low[1], high[1] - low[1], high, near)
            for (low_at, high_at), (low, high), near in zip(
                pairwise(ends), pairwise(costs), pairwise(jitter), strict=True
            )
        ]
        self._last = len(self._parts) - 1

    def at(self, load: float, quantile: float | None) -> SegmentCost:
        i = bisect_right(self._places, load) - 1
        if i >= self._last:
            i = self._last
            if load > self._unchecked:
                self._grid.check(2, load)
        start, width, low_s, rise_s, low_ms, rise_ms, high, jitter = self._parts[i if i > 0 else 0]
        part = (load - start) / width
        duration_s, kernel_ms = low_s + rise_s * part, low_ms + rise_ms * part
        if part > 1:
            duration_s, kernel_ms = max(duration_s, high[0]), max(kernel_ms, high[1])
        if quantile is not None:
            ratio, rise, start, width = jitter[part > 0.5].parts[bisect_right(_JITTER_ENDS, quantile)]
            duration_s *= ratio + rise * (quantile - start) / width
        return _new(SegmentCost, (duration_s, kernel_ms))


_KNOTS: Final = (0.0, *QUANTILES.values(), 1.0)  # quantiles
_JITTER_ENDS: Final = _KNOTS[1:-1]  # of all parts but the last


class _Jitter:
    """Duration as a ratio to the mean, as a piecewise-linear function of the quantile whose mean is 1.

    Its knots are the measured quantiles, the lowest line going on to quantile 0, but not to nothing. The value at
    quantile 1 makes up what the mean still lacks, so rare long executions show; where nothing lacks, the whole curve
    is scaled.
    """

    __slots__ = ("parts",)

    def __init__(self, ratios: Sequence[float]) -> None:
        fall = (ratios[1] - ratios[0]) * _KNOTS[1] / (_KNOTS[2] - _KNOTS[1])
        low = max(ratios[0] / 1e3, ratios[0] - fall)
        known = [low, *ratios]
        tail = _KNOTS[-1] - _KNOTS[-2]
        lacking = 1.0 - float(np.trapezoid(known, _KNOTS[:-1]))
        known.append(max(ratios[-1], 2 * lacking / tail - ratios[-1]))
        scaled = (np.array(known) / np.trapezoid(known, _KNOTS)).tolist()
        self.parts = [  # of the curve: the ratio and the quantile at its start, and how far each rises
            (ratio, after - ratio, place, end - place)
            for (ratio, after), (place, end) in zip(pairwise(scaled), pairwise(_KNOTS), strict=True)
        ]


def _place(places: Sequence[float], asked: float) -> tuple[int, float]:
    """The interval of a value and where in it: 0 at its start, 1 at its end, above 1 past the last."""
    i = min(max(bisect_right(places, asked) - 1, 0), max(len(places) - 2, 0))
    if len(places) == 1:
        return 0, 0.0
    return i, (asked - places[i]) / (places[i + 1] - places[i])


def _filled(points: np.ndarray, values: np.ndarray, axes: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """The values on the full grid, and which point is nearest to each place.

    A place that was not measured takes the nearest point's value, scaled by what a linear model of the cost (a
    constant, drafts, requests, tokens fed, load, cache read) says about the two places.
    """
    shape = tuple(len(axis) for axis in axes)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)  # [draft length, batch, load, 3]
    reach = np.array([max(axis[-1], 1.0) for axis in axes])
    distance = np.abs((grid[..., None, :] - points) / reach).sum(axis=-1)  # [draft length, batch, load, points]
    nearest = distance.argmin(axis=-1)
    solution, *_ = np.linalg.lstsq(_features(points / reach), values, rcond=None)
    least = values.min(axis=0) / 10 + 1e-12
    model = np.maximum(_features(grid.reshape(-1, 3) / reach) @ solution, least).reshape(*shape, -1)
    at_points = np.maximum(_features(points / reach) @ solution, least)
    scale = np.where((distance.min(axis=-1) > 0)[..., None], model / at_points[nearest], 1.0)
    return values[nearest] * scale, nearest


def _features(points: np.ndarray) -> np.ndarray:
    """Columns of the linear model, for rows of (draft length, batch, load)."""
    k, batch, load = points.T
    return np.column_stack([np.ones(len(points)), k, batch, k * batch, load, batch * load, k * batch * load])
