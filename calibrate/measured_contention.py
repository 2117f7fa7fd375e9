"""The contention of a profile: the fitted law, corrected by what was measured. Needs no torch.

The law of calibrate.contention has few parameters, so it extends to combinations that were never measured, but it
misses its own table by several percent. Where a combination of kinds was measured, the difference of measured and
fitted rates is interpolated between the measured sizes, by radial basis functions. A size is the logarithm of the
segment's rows and that of its mean kernel duration, which jumps where a GPU changes to other kernels. Beyond the
measured sizes, the difference at the edge holds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from calibrate.contention import LEAST_RATE, ContentionModel, RunningSegment, fit_contention, running_segments
from engines.policy.architecture import Segment

SMOOTHING = 0.02  # how far the interpolation may stay away from a point: rates have an error of about 1%
KERNEL_WEIGHT = 2.0  # of a factor in kernel duration, against the same factor in rows
STEPS = 8  # sizes are rounded to this part of a factor of 2, so that few are ever interpolated


class MeasuredContention:
    """Rates of segments that run together: those of `law`, corrected by the differences in its table."""

    def __init__(self, law: ContentionModel) -> None:
        self.law = law
        self._corrections = _corrections(law.residuals)
        self._known: dict[tuple[tuple[Segment, int, int], ...], list[float]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.law,)

    def rates(self, running: Sequence[RunningSegment]) -> list[float]:
        """Return the rate of each segment in (0, 1], in order. A segment alone runs at 1.

        Raises InputError if the law does, for segments far outside the range of its table.
        """
        if len(running) < 2:
            return [1.0] * len(running)
        key = tuple([(segment, rows, round(STEPS * math.log2(kernel_ms))) for segment, rows, kernel_ms in running])
        corrections = self._known.get(key)
        if corrections is None:
            corrections = self._known[key] = self._correct(key)
        rates = zip(self.law.rates(running), corrections, strict=True)
        return [min(1.0, max(LEAST_RATE, rate + correction)) for rate, correction in rates]

    def _correct(self, running: Sequence[tuple[Segment, int, int]]) -> list[float]:
        """Measured minus fitted rates of these segments; 0 where their kinds were not measured together."""
        order = sorted(range(len(running)), key=lambda i: running[i][0])
        found = [0.0] * len(running)
        correction = self._corrections.get(tuple([running[i][0] for i in order]))
        if correction is not None:
            sizes = [_size(rows, steps / STEPS) for _, rows, steps in (running[i] for i in order)]
            for i, value in zip(order, correction.at(np.concatenate(sizes)), strict=True):
                found[i] = value
        return found


def measured_contention(table: pd.DataFrame) -> MeasuredContention:
    """Fit the law to a profile's contention table and correct it by the table. Raises InputError as that does."""
    return MeasuredContention(fit_contention(table))


class _Correction:
    """Measured minus fitted rates of one combination of kinds. sizes: [groups, sizes]. found: [groups, segments]."""

    def __init__(self, sizes: np.ndarray, found: np.ndarray) -> None:
        from scipy.interpolate import RBFInterpolator  # takes 0.2 s to import

        self._least, self._most = sizes.min(axis=0), sizes.max(axis=0)
        self._interpolated = RBFInterpolator(sizes, found, kernel="linear", smoothing=SMOOTHING)

    def at(self, size: np.ndarray) -> list[float]:
        found: list[float] = self._interpolated(np.clip(size, self._least, self._most)[None])[0].tolist()
        return found


def _corrections(residuals: pd.DataFrame) -> dict[tuple[Segment, ...], _Correction]:
    groups, sizes, differences = defaultdict(list), defaultdict(list), defaultdict(list)
    errors = residuals["error"].tolist()
    for group, running, error in zip(residuals["group"].tolist(), running_segments(residuals), errors, strict=True):
        groups[group].append((running, -error))
    for group in groups.values():
        members = sorted(group, key=lambda member: member[0].segment)
        kinds = tuple(running.segment for running, _ in members)
        sizes[kinds].append(np.concatenate([_size(one.rows, math.log2(one.kernel_ms)) for one, _ in members]))
        differences[kinds].append([difference for _, difference in members])
    return {kinds: _Correction(np.array(sizes[kinds]), np.array(differences[kinds])) for kinds in sizes}


def _size(rows: int, log_kernel_ms: float) -> list[float]:
    return [math.log2(rows), KERNEL_WEIGHT * log_kernel_ms]
