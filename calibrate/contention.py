"""The contention model: the rates of segments that run together on one device, and its fit. Needs no torch.

Two power laws of the mean kernel duration tau (solo duration / kernels), each with a factor per kind of segment:

    weight_i = w(kind) * tau_i ** gamma         a stream's weight when streams take turns
    fill_i   = f(kind) * tau_i ** beta          how much of the device the segment needs to run at full speed
    share_i  = weight_i / sum(weight)
    sum of rates = (sum(share_i * fill_i)) ** -((n - 1) ** spread)
    rate_i   = min(1, share_i * sum of rates)

A GPU that alternates between streams kernel by kernel has gamma near 1 and fill just below 1: long kernels win, and
overlap only gains the little that small kernels leave free. A CPU that shares its cores fairly has gamma near 0 and a
fill of (cores used alone / cores); above 1 the streams slow each other down. For combinations that were never
measured, the rates follow from the kinds, the kernel durations and the number of streams; a kind that was never
measured counts as an average one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from engines.errors import InputError
from engines.pickling import by_fields
from engines.policy.architecture import Segment
from engines.policy.segment_shape import SegmentShape

KINDS = tuple(Segment)
# Starting point of the fit, and how strongly a parameter is held there if the table does not determine it, in units
# of rate (an error of 0.01 weighs as much as a parameter one unit off at a strength of 0.01).
GAMMA, LOG_FILL, BETA, SPREAD = 1.0, -0.2, 0.2, 0.7
HOLD, HOLD_KIND = 0.002, 0.01
LEAST_RATE, MOST_RATE = 1e-4, 2.0  # range of measured rates: ten thousand times slower than alone is an error
NO_RATE = 1e-6  # lower predictions mean nothing: the fit is far outside the range of its table
KERNEL_MS = (1e-9, 1e9)  # range of mean kernel durations


class RunningSegment(NamedTuple):
    """A segment that is running on the device.

    rows: tokens of one pass (SegmentShape.rows). kernel_ms: mean kernel duration alone = solo duration / kernels.
    """

    segment: Segment
    rows: int
    kernel_ms: float


@dataclass(frozen=True)
class ContentionModel:
    """Rates of segments that run together, as fractions of their solo speed.

    gamma, beta, spread: as in the formulas above. log_fill: logarithm of the fill at the typical kernel duration
    typical_ms. log_weight_of, log_fill_of: logarithm of the factor of each kind. fill is constant outside
    measured_ms, the range of kernel durations in the table. residuals: the fitted table with `predicted` and `error`
    (predicted - measured rate).
    """

    gamma: float
    log_fill: float
    beta: float
    spread: float
    typical_ms: float
    measured_ms: tuple[float, float]
    log_weight_of: dict[Segment, float]
    log_fill_of: dict[Segment, float]
    residuals: pd.DataFrame = field(repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return by_fields(self)

    def rates(self, running: Sequence[RunningSegment]) -> list[float]:
        """Return the rate of each segment in (0, 1], in order. A segment alone runs at 1.

        Raises InputError if a rate falls below NO_RATE.
        """
        if len(running) < 2:
            return [1.0] * len(running)
        least, most = self.measured_ms
        weights, filled = [], 0.0
        for segment, _, kernel_ms in running:
            weight = math.exp(self.log_weight_of[segment] + self.gamma * math.log(kernel_ms / self.typical_ms))
            size = math.log(min(most, max(least, kernel_ms)) / self.typical_ms)
            filled += weight * math.exp(self.log_fill + self.log_fill_of[segment] + self.beta * size)
            weights.append(weight)
        total = sum(weights)
        try:
            speed = (filled / total) ** -((len(running) - 1) ** self.spread) / total
        except OverflowError:  # so many streams that hardly fill the device do not slow each other down
            return [1.0] * len(running)
        if min(weights) * speed < NO_RATE:
            raise _no_rate(running, min(weights) * speed)
        return [min(1.0, weight * speed) for weight in weights]

    @property
    def mean_absolute_error(self) -> float:
        """The mean absolute error of the predicted rates over the fitted table."""
        return float(self.residuals["error"].abs().mean())


class Rates(Protocol):
    """Returns the rates of segments that run together, each in (0, 1], in order."""

    def rates(self, running: Sequence[RunningSegment]) -> list[float]: ...


class NoContention:
    """Segments do not slow each other down. For what-if studies, never a default."""

    def rates(self, running: Sequence[RunningSegment]) -> list[float]:
        return [1.0] * len(running)


def fit_contention(table: pd.DataFrame) -> ContentionModel:
    """Fit the model to the measured rates of a profile's contention table by least squares.

    Raises InputError if no group of the table has two or more streams. Also raises InputError, naming the row, for a
    rate or a kernel duration (solo_ms / kernels) that cannot have been measured.
    """
    from scipy.optimize import least_squares  # takes 0.2 s to import, and not every command fits

    _check_rows(table)
    together = _of_several_streams(table)
    if together.empty:
        remedy = "no two streams were measured together; calibrate again, or simulate without contention"
        raise InputError("contention", f"{len(table)} rows", remedy)
    data, kinds = _Data(together), len(KINDS)
    start = np.array([GAMMA, LOG_FILL, BETA, SPREAD] + [0.0] * 2 * kinds)
    hold = np.array([HOLD] * 4 + [HOLD_KIND] * 2 * kinds)
    least = np.array([0.0, -3.0, -3.0, 0.0] + [-3.0] * 2 * kinds)
    most = np.full(len(start), 3.0)

    def error(x: np.ndarray) -> np.ndarray:
        return np.concatenate([data.predict(x) - data.rate, hold * (x - start)])

    x = least_squares(error, start, bounds=(least, most)).x
    predicted = data.predict(x)
    gamma, log_fill, beta, spread = x[:4].tolist()
    return ContentionModel(
        gamma=gamma,
        log_fill=log_fill,
        beta=beta,
        spread=spread,
        typical_ms=data.typical_ms,
        measured_ms=data.measured_ms,
        log_weight_of=dict(zip(KINDS, x[4 : 4 + kinds].tolist(), strict=True)),
        log_fill_of=dict(zip(KINDS, x[4 + kinds :].tolist(), strict=True)),
        residuals=together.assign(predicted=predicted, error=predicted - data.rate),
    )


def leave_one_group_out(table: pd.DataFrame, fit: Callable[[pd.DataFrame], Rates] = fit_contention) -> pd.DataFrame:
    """Return the table with `predicted` and `error`, each group predicted by a fit to the other groups.

    This shows how good a model is for combinations that were never measured. Groups of one stream are left out.
    """
    together = _of_several_streams(table)
    held_out = []
    for _, group in together.groupby("group", sort=False):
        predicted = np.array(fit(together.drop(group.index)).rates(running_segments(group)))
        held_out.append(group.assign(predicted=predicted, error=predicted - group["rate"].to_numpy()))
    return pd.concat(held_out, ignore_index=True)


def running_segments(group: pd.DataFrame) -> list[RunningSegment]:
    """Return the segments of a contention table, or of one of its groups, in the order of the rows."""
    sizes = group[["segment", "batch_size", "draft_length", "tokens"]].to_numpy().tolist()
    shapes = [SegmentShape(Segment(segment), int(n), int(k), int(tokens), 0) for segment, n, k, tokens in sizes]
    return [
        RunningSegment(shape.segment, shape.rows, kernel_ms)
        for shape, kernel_ms in zip(shapes, _kernel_ms(group), strict=True)
    ]


def _check_rows(table: pd.DataFrame) -> None:
    """Refuse values far beyond any device, since the powers in the fit would overflow."""
    checked = {"rate": (table["rate"], LEAST_RATE, MOST_RATE), "solo_ms / kernels": (_kernel_ms(table), *KERNEL_MS)}
    for name, (values, least, most) in checked.items():
        bad = np.flatnonzero(~values.between(least, most))
        if len(bad):
            row = table.iloc[int(bad[0])]
            where = f"contention line {int(bad[0]) + 2} (group {row['group']}, {row['segment']}) {name}"
            remedy = f"needs a number from {least:g} to {most:g}; calibrate again"
            raise InputError(where, float(values.iloc[int(bad[0])]), remedy)


def _kernel_ms(table: pd.DataFrame) -> pd.Series:
    """Return the mean kernel duration of each row alone."""
    return (table["solo_ms"] / table["kernels"]).astype(float)


def _no_rate(running: Sequence[RunningSegment], rate: float) -> InputError:
    kernel_ms = [one.kernel_ms for one in running]
    together = f"{len(running)} streams with kernels of {min(kernel_ms):.3g} to {max(kernel_ms):.3g} ms"
    remedy = f"the fit does not extend to {together}; calibrate such streams together"
    return InputError("contention rate", rate, f"{remedy}, or simulate without contention")


def _of_several_streams(table: pd.DataFrame) -> pd.DataFrame:
    streams = table["group"].map(table["group"].value_counts())
    return table[streams > 1].reset_index(drop=True)


class _Data:
    """A contention table as arrays with one entry per row, for the formulas of ContentionModel.rates."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.group = pd.factorize(table["group"])[0]
        self.streams = np.bincount(self.group)
        self.kind = np.array([KINDS.index(Segment(segment)) for segment in table["segment"]])
        self.rate = table["rate"].to_numpy(float)
        tau = _kernel_ms(table).to_numpy()
        self.typical_ms = float(np.exp(np.log(tau).mean()))
        self.measured_ms = (float(tau.min()), float(tau.max()))
        self.size = np.log(tau / self.typical_ms)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the rates for x = (gamma, log_fill, beta, spread, log weight per kind, log fill per kind)."""
        gamma, log_fill, beta, spread = x[:4]
        log_weight_of, log_fill_of = x[4 : 4 + len(KINDS)], x[4 + len(KINDS) :]
        weight = np.exp(log_weight_of[self.kind] + gamma * self.size)
        share = weight / np.bincount(self.group, weight)[self.group]
        fill = np.exp(log_fill + log_fill_of[self.kind] + beta * self.size)
        total = np.bincount(self.group, share * fill) ** -((self.streams - 1) ** spread)
        return np.minimum(1.0, share * total[self.group])
