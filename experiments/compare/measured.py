"""What a live run says its own costs were: solo durations, contention and host time.

Everything is expressed as a correction of a profile, so that one cause at a time can be exchanged in a simulation
(experiments.compare.explain).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from calibrate.contention import RunningSegment
from calibrate.host_times import host_times
from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import Architecture, Segment
from engines.policy.captured_sizes import ENGINES, CapturedSizes, CapturePlan, capture_plans, prefill_tokens_of
from engines.policy.segment_shape import SegmentShape
from engines.record.run import Run
from sim.costs import CostModel

ALONE = 0.9  # share of a segment's time without a neighbour from which it tells the solo duration
SOLO_SD, SIZE_SD = 0.03, 0.015  # expected errors of solo durations, and of one size beside the others (logarithms)
TYPICAL = 0.05  # residuals (logarithms) beyond it weigh less and less
HOLD_LEVEL, HOLD_SLOPE = 0.005, 0.05  # how strongly what the spans do not tell is held at "no correction"

Neighbours = tuple[Segment, ...]


def size_of(running: RunningSegment) -> float:
    """Return the logarithm of the size that contention may depend on."""
    return math.log(running.rows)


def neighbours_of(place: int, running: Sequence[RunningSegment]) -> tuple[Neighbours, float]:
    """Return the kinds that run beside a segment, each once, and the sum of their sizes."""
    others = [one for other, one in enumerate(running) if other != place]
    return tuple(sorted({one.segment for one in others})), sum(map(size_of, others))


def shape_size(shape: SegmentShape) -> int:
    """Return the requests of a draft or verify, and the tokens of a prefill."""
    return shape.tokens if shape.prefills else shape.batch_size


class Slowdown(NamedTuple):
    """A correction of the modelled rate beside some neighbours: exp(level + slopes * (sizes - centre)).

    Sizes are kept within those seen.
    """

    level: float
    slopes: tuple[float, float]
    centre: tuple[float, float]
    least: tuple[float, float]
    most: tuple[float, float]

    def factor(self, own: float, others: float) -> float:
        total = self.level
        for size, slope, centre, least, most in zip((own, others), *self[1:], strict=True):
            total += slope * (min(max(size, least), most) - centre)
        return math.exp(total)


@dataclass(frozen=True)
class Measured:
    """The corrections of one live run.

    solo: factor of the profile's solo duration, by segment and size (batch, or tokens of a prefill; 0 for sizes that
    the run never had alone). slowdowns: by segment and neighbours. profile: with the run's host times.
    """

    solo: Mapping[tuple[Segment, int], float]
    slowdowns: Mapping[tuple[Segment, Neighbours], Slowdown]
    profile: Profile

    @cached_property
    def costs(self) -> CostModel:
        """The profile's costs with the run's host times."""
        return CostModel(self.profile, extrapolate=True)

    def solo_factor(self, shape: SegmentShape) -> float:
        general = self.solo.get((shape.segment, 0), 1.0)
        return self.solo.get((shape.segment, shape_size(shape)), general)

    def rate_factor(self, place: int, running: Sequence[RunningSegment]) -> float:
        kinds, others = neighbours_of(place, running)
        slowdown = self.slowdowns.get((running[place].segment, kinds))
        return 1.0 if slowdown is None else slowdown.factor(size_of(running[place]), others)


def captured_by(live: Run, profile: Profile) -> CapturedSizes | None:
    """Return what the engine of a live run padded to; None if it padded nothing."""
    return profile.captured or (ENGINES if live.info.get("prefill_tokens") else None)


def plans_of(live: Run, sizes: CapturedSizes | None) -> dict[int, CapturePlan]:
    """Return what a live run's engine captured, by stream."""
    architecture = Architecture.from_dict(live.info["architecture"])
    longest = max(1, int(live.requests["prompt_tokens"].max()))
    tokens = live.info.get("prefill_tokens") or prefill_tokens_of(architecture, longest)
    return capture_plans(architecture, tokens, sizes)


def measured(live: Run, profile: Profile, costs: CostModel) -> Measured:
    """Fit the corrections of a profile to a live run.

    Segments that ran alone (for ALONE of their time) tell the solo durations. Those that ran beside others tell the
    contention: their work, at the modelled rates times the corrections, must equal the solo duration. Where no
    segment of a kind ran alone, its solo duration is taken to be right. costs: of the profile. Segments whose shapes
    it refuses are left out.
    """
    ran = _ran(live, plans_of(live, captured_by(live, profile)), costs)
    _do_work(ran, costs)
    solo: dict[tuple[Segment, int], float] = {}
    slowdowns: dict[tuple[Segment, Neighbours], Slowdown] = {}
    for segment in Segment:
        own = [one for one in ran if one.running.segment == segment]
        alone = [one for one in own if one.alone_s >= ALONE * (one.end_s - one.start_s)]
        ratio = np.log([one.done_s / one.solo_s for one in alone])
        factors = _solo_factors(ratio, np.array([one.size for one in alone]))
        solo |= {(segment, size): factor for size, factor in factors.items()} if own else {}
        needed_s = np.array([one.solo_s * factors.get(one.size, factors[0]) for one in own])
        slowdowns |= {(segment, kinds): slowdown for kinds, slowdown in _slowdowns(own, needed_s).items()}
    return Measured(solo, slowdowns, dataclasses.replace(profile, host_times=host_times([live])))


class _Piece(NamedTuple):
    """A time during which a segment had the same neighbours. others: sum of their sizes. work_s: as modelled."""

    kinds: Neighbours
    others: float
    work_s: float


@dataclass
class _Ran:
    """A segment of the live run: its padded size, what it had beside it and what it got done."""

    running: RunningSegment
    size: int
    device: int
    start_s: float
    end_s: float
    solo_s: float
    alone_s: float = 0.0
    pieces: list[_Piece] = field(default_factory=list)

    @property
    def done_s(self) -> float:
        return self.alone_s + sum(piece.work_s for piece in self.pieces)


def _ran(live: Run, plans: Mapping[int, CapturePlan], costs: CostModel) -> list[_Ran]:
    found = []
    spans = live.spans[live.spans["end_s"] > live.spans["start_s"]]
    columns = ["stream", "device", "start_s", "end_s", *SegmentShape._fields]
    for stream, device, start_s, end_s, segment, *sizes in spans[columns].itertuples(index=False):
        shape = SegmentShape(Segment(segment), *sizes)
        shape = plans[stream].padded(shape) if stream in plans else shape
        with suppress(InputError):
            cost = costs.cost(shape)
            running = RunningSegment(shape.segment, shape.batch_size, cost.kernel_ms)
            found.append(_Ran(running, shape_size(shape), device, start_s, end_s, cost.duration_s))
    return found


def _do_work(ran: Sequence[_Ran], costs: CostModel) -> None:
    """Fill in alone_s and pieces, at the modelled rates."""
    for device in {one.device for one in ran}:
        own = [one for one in ran if one.device == device]
        events = sorted(
            [(one.end_s, 0, i) for i, one in enumerate(own)] + [(one.start_s, 1, i) for i, one in enumerate(own)]
        )
        here: dict[int, _Ran] = {}
        last_s = 0.0
        for now, begins, place in events:
            passed_s, together = now - last_s, list(here.values())
            if passed_s > 0 and len(together) == 1:
                together[0].alone_s += passed_s
            elif passed_s > 0 and together:
                running = [one.running for one in together]
                for i, rate in enumerate(costs.contention.rates(running)):
                    together[i].pieces.append(_Piece(*neighbours_of(i, running), rate * passed_s))
            last_s = now
            if begins:
                here[place] = own[place]
            else:
                del here[place]


def _solo_factors(ratio: np.ndarray, sizes: np.ndarray) -> dict[int, float]:
    """Return the factor of each size that ran alone, and under 0 that of all others.

    ratio: logarithm of measured over modelled duration. The less the segments tell, for they are few or vary much,
    the nearer a factor is to that of all sizes, and that one to 1.
    """
    if not len(ratio):
        return {0: 1.0}
    noise = float(np.median(np.abs(ratio - np.median(ratio)))) * 1.48  # as a standard deviation
    general = _held(ratio, 0.0, noise / SOLO_SD)
    own = {int(size): _held(ratio[sizes == size], general, noise / SIZE_SD) for size in np.unique(sizes)}
    return {size: math.exp(factor) for size, factor in {0: general, **own}.items()}


def _held(ratio: np.ndarray, expected: float, noise: float) -> float:
    """Return the median, held towards what was expected. noise: standard deviation, in units of that of the errors
    expected."""
    weight = len(ratio) / (len(ratio) + noise**2)
    return expected + weight * (float(np.median(ratio)) - expected)


def _slowdowns(ran: Sequence[_Ran], needed_s: np.ndarray) -> dict[Neighbours, Slowdown]:
    """Return the corrections of the rates of one kind of segment, by neighbours. needed_s: work of each segment."""
    from scipy.optimize import least_squares  # takes 0.2 s to import

    combinations = sorted({piece.kinds for one in ran for piece in one.pieces})
    if not combinations:
        return {}
    row = np.array([i for i, one in enumerate(ran) for _ in one.pieces])
    pieces = [piece for one in ran for piece in one.pieces]
    place = np.array([combinations.index(piece.kinds) for piece in pieces])
    sizes = np.array([(size_of(ran[i].running), piece.others) for i, piece in zip(row, pieces, strict=True)])
    work_s = np.array([piece.work_s for piece in pieces])
    alone_s = np.array([one.alone_s for one in ran])
    bounds = [(sizes[place == i].min(axis=0), sizes[place == i].max(axis=0)) for i in range(len(combinations))]
    centre = np.array([sizes[place == i].mean(axis=0) for i in range(len(combinations))])
    features = np.zeros((len(pieces), 3 * len(combinations)))
    for i in range(len(combinations)):
        mine = place == i
        features[mine, 3 * i : 3 * i + 3] = np.column_stack([np.ones(mine.sum()), sizes[mine] - centre[i]])
    hold = np.sqrt(len(ran)) * np.tile([HOLD_LEVEL, HOLD_SLOPE, HOLD_SLOPE], len(combinations))

    def error(x: np.ndarray) -> np.ndarray:
        done = alone_s + np.bincount(row, work_s * np.exp(features @ x), minlength=len(ran))
        return np.concatenate([np.log(np.maximum(done, 1e-9) / needed_s), hold * x])

    x = least_squares(error, np.zeros(features.shape[1]), bounds=(-1.5, 1.5), loss="soft_l1", f_scale=TYPICAL).x
    return {
        kinds: Slowdown(
            float(x[3 * i]), (float(x[3 * i + 1]), float(x[3 * i + 2])),
            tuple(centre[i].tolist()), tuple(bounds[i][0].tolist()), tuple(bounds[i][1].tolist()),
        )
        for i, kinds in enumerate(combinations)
    }  # fmt: skip
