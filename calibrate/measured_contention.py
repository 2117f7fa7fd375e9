"""The contention of a profile: the fitted law, corrected by what was measured. Needs no torch.

The law of calibrate.contention has few parameters, so it extends to combinations that were never measured, but it
misses its own table by several percent. Where a combination of kinds was measured, the ratio of measured and fitted
rates is interpolated over the sizes of the segments, by radial basis functions of the logarithms of their rows.
Beyond the measured sizes, the ratio at the edge holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.interpolate import RBFInterpolator

from calibrate.contention import LEAST_RATE, ContentionModel, RunningSegment, fit_contention, running_segments
from engines.policy.architecture import Segment

SMOOTHING = 0.02  # how far the interpolation may stay away from a point: rates have an error of about 1%


class MeasuredContention:
    """Rates of segments that run together: `law` times the interpolated ratio of measured and fitted rates."""

    def __init__(self, law: ContentionModel) -> None:
        self.law = law
        self._corrections = _corrections(law.residuals)
        self._known: dict[tuple[tuple[Segment, int], ...], list[float]] = {}

    def rates(self, running: Sequence[RunningSegment]) -> list[float]:
        """Return the rate of each segment in (0, 1], in order. A segment alone runs at 1.

        Raises InputError if the law does, for segments far outside the range of its table.
        """
        if len(running) < 2:
            return [1.0] * len(running)
        key = tuple([(segment, rows) for segment, rows, _ in running])
        ratios = self._known.get(key)
        if ratios is None:
            ratios = self._known[key] = self._ratios(key)
        return [
            min(1.0, max(LEAST_RATE, rate * ratio))
            for rate, ratio in zip(self.law.rates(running), ratios, strict=True)
        ]

    def _ratios(self, running: Sequence[tuple[Segment, int]]) -> list[float]:
        """Measured against fitted rates of these segments; 1 where their kinds were not measured together."""
        order = sorted(range(len(running)), key=lambda i: running[i][0])
        correction = self._corrections.get(tuple(running[i][0] for i in order))
        if correction is None:
            return [1.0] * len(running)
        found = correction.at([running[i][1] for i in order])
        ratios = [1.0] * len(running)
        for i, ratio in zip(order, found, strict=True):
            ratios[i] = ratio
        return ratios


def measured_contention(table: pd.DataFrame) -> MeasuredContention:
    """Fit the law to a profile's contention table and correct it by the table. Raises InputError as that does."""
    return MeasuredContention(fit_contention(table))


class _Correction:
    """Logarithms of measured / fitted rates of one combination of kinds.

    sizes: log2 of the rows, [groups, segments]. ratios: [groups, segments].
    """

    def __init__(self, sizes: np.ndarray, ratios: np.ndarray) -> None:
        self._least, self._most = sizes.min(axis=0), sizes.max(axis=0)
        places, which = np.unique(
            sizes, axis=0, return_inverse=True
        )  # one that was measured twice counts as its mean
        counts = np.bincount(which.ravel())
        means = np.column_stack([np.bincount(which.ravel(), column) / counts for column in ratios.T])
        self._interpolated = RBFInterpolator(places, means, kernel="linear", smoothing=SMOOTHING)

    def at(self, rows: Sequence[int]) -> list[float]:
        place = np.clip(np.log2(rows), self._least, self._most)
        found: list[float] = np.exp(self._interpolated(place[None])[0]).tolist()
        return found


def _corrections(residuals: pd.DataFrame) -> dict[tuple[Segment, ...], _Correction]:
    sizes: dict[tuple[Segment, ...], list[list[float]]] = {}
    ratios: dict[tuple[Segment, ...], list[list[float]]] = {}
    for _, group in residuals.groupby("group", sort=False):
        found = np.log(group["rate"].to_numpy() / group["predicted"].to_numpy()).tolist()
        members = sorted(zip(running_segments(group), found, strict=True), key=lambda member: member[0].segment)
        kinds = tuple(running.segment for running, _ in members)
        sizes.setdefault(kinds, []).append(np.log2([running.rows for running, _ in members]).tolist())
        ratios.setdefault(kinds, []).append([ratio for _, ratio in members])
    return {kinds: _Correction(np.array(sizes[kinds]), np.array(ratios[kinds])) for kinds in sizes}
