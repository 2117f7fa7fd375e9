"""How many tokens the draft model proposes per step: a fixed number, or one that adapts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from engines.errors import MOST_WHOLE, InputError, require_whole
from engines.texts import range_in, whole_in

MOST_DRAFTS = 1_000  # per step: no draft model is right so often in a row


@dataclass(frozen=True)
class FixedDraftLength:
    """Always draft k tokens. With k = 0, nothing is drafted: each verify emits one token, the target's own."""

    k: int = 4

    def __post_init__(self) -> None:
        require_whole("draft_length", self.k, 0, MOST_DRAFTS)

    @property
    def minimum(self) -> int:
        return self.k

    @property
    def maximum(self) -> int:
        return self.k

    @property
    def label(self) -> str:
        """Its name in tables and folders, as parse_draft_length reads it."""
        return str(self.k)

    def controller(self) -> FixedController:
        return FixedController(self.k)


@dataclass(frozen=True)
class AdaptiveDraftLength:
    """Adapt k to the acceptance rate and to the verify queue.

    Every `every` verifications, k is reconsidered. It grows by one if the acceptance rate of the last `window`
    verifications is above `raise_above` and at most `short_queue` requests wait for verify. It shrinks by one if
    the rate is below `lower_below` or more than `long_queue` requests wait. It stays within minimum..maximum, and
    minimum is at least 1: at 0 there would be no acceptance to see, and k would never rise again.
    """

    minimum: int = 2
    maximum: int = 8
    start: int = 4
    window: int = 100
    every: int = 10
    raise_above: float = 0.7
    lower_below: float = 0.4
    short_queue: int = 4
    long_queue: int = 12

    def __post_init__(self) -> None:
        least = {"minimum": 1, "start": 1, "maximum": 1, "window": 1, "every": 1, "short_queue": 0, "long_queue": 0}
        for name, bound in least.items():
            most = MOST_DRAFTS if name in ("minimum", "start", "maximum") else MOST_WHOLE
            require_whole(f"draft_length.{name}", getattr(self, name), bound, most)
        for name in ("raise_above", "lower_below"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"draft_length.{name}", value, "use a rate from 0 to 1")
        for names in (("minimum", "start", "maximum"), ("lower_below", "raise_above"), ("short_queue", "long_queue")):
            values = [getattr(self, name) for name in names]
            if values != sorted(values):
                raise InputError(f"draft_length.{', '.join(names)}", values, f"need {' <= '.join(names)}")

    @property
    def label(self) -> str:
        return f"{self.minimum}-{self.maximum}"

    def controller(self) -> AdaptiveController:
        return AdaptiveController(self)


@dataclass(frozen=True)
class LoadAdaptiveDraftLength:
    """For each draft batch, choose the k with the most expected tokens per second.

    engines.policy.load_adaptive explains the choice. k lies within minimum..maximum, and was `start` before the first
    batch. Acceptance is estimated from the last `window` verifications and, until there are enough, from
    `prior_drafts` drafts of acceptance `prior`. The shortest k within a fraction `margin` of the best counts as best.
    Where k was 0 and rises, what the draft model has not seen must pay back within `payback` batches. After
    `probe_every` batches without drafts, one has some, since acceptance may have changed; 0 never probes.
    """

    minimum: int = 0
    maximum: int = 8
    start: int = 4
    window: int = 500
    prior: float = 0.7
    prior_drafts: int = 20
    margin: float = 0.01
    payback: int = 64
    probe_every: int = 500

    def __post_init__(self) -> None:
        least = {
            "minimum": 0, "maximum": 1, "start": 0, "window": 1, "prior_drafts": 1, "payback": 1, "probe_every": 0,
        }  # fmt: skip
        for name, bound in least.items():
            most = MOST_DRAFTS if name in ("minimum", "start", "maximum") else MOST_WHOLE
            require_whole(f"draft_length.{name}", getattr(self, name), bound, most)
        for name in ("prior", "margin"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"draft_length.{name}", value, "use a number from 0 to 1")
        bounds = [self.minimum, self.start, self.maximum]
        if bounds != sorted(bounds):
            raise InputError("draft_length.minimum, start, maximum", bounds, "need minimum <= start <= maximum")

    @property
    def label(self) -> str:
        return f"{LOAD}{self.minimum}-{self.maximum}"


LOAD = "load"  # before the bounds of a load-adaptive draft length
DraftLength = FixedDraftLength | AdaptiveDraftLength | LoadAdaptiveDraftLength


def covers(one: DraftLength, other: DraftLength) -> bool:
    """Return whether an engine for the one can serve with the other: every k of it lies within the bounds of the one,
    and only an engine for a load-adaptive one has the measured times that another such one weighs."""
    weighs = isinstance(other, LoadAdaptiveDraftLength) and not isinstance(one, LoadAdaptiveDraftLength)
    return one.minimum <= other.minimum and other.maximum <= one.maximum and not weighs


def parse_draft_length(text: str) -> DraftLength:
    """Parse a draft length: "4" (fixed), "0" (no drafts), "adaptive" (follows acceptance by rule, 2 to 8, starting at
    4), "3-6" (the same within these bounds), "load" (follows the load, 0 to 8) or "load0-4".

    Raises InputError.
    """
    if text == "adaptive":
        return AdaptiveDraftLength()
    if text == LOAD:
        return LoadAdaptiveDraftLength()
    if text.startswith(LOAD) and (bounds := range_in(text.removeprefix(LOAD), least=0)):
        low, high = bounds
        return LoadAdaptiveDraftLength(low, high, min(max(LoadAdaptiveDraftLength.start, low), high))
    if bounds := range_in(text):
        low, high = bounds
        start = min(max(AdaptiveDraftLength.start, low), high)
        return AdaptiveDraftLength(minimum=low, maximum=high, start=start)
    if (k := whole_in(text)) is not None:
        return FixedDraftLength(k)
    remedy = (
        "use a whole number (0: no drafts), a range from 1 up (2-8), adaptive, load, or load with bounds (load0-4)"
    )
    raise InputError("draft_length", text, remedy)


class FixedController:
    """Keep `k` fixed."""

    def __init__(self, k: int) -> None:
        self.k = k

    def observe(self, drafted: int, accepted: int, verify_queue: int) -> None:
        """Ignore a verification."""


class AdaptiveController:
    """Change `k` by at most one at a time. One controller serves a whole engine."""

    def __init__(self, rule: AdaptiveDraftLength) -> None:
        self.rule = rule
        self.k = rule.start
        self._recent: deque[tuple[int, int]] = deque(maxlen=rule.window)
        self._since_change = 0

    def observe(self, drafted: int, accepted: int, verify_queue: int) -> None:
        """Take note of one request's verification. verify_queue: how many requests still wait for verify."""
        rule = self.rule
        self._recent.append((drafted, accepted))
        self._since_change += 1
        if self._since_change < rule.every:
            return
        self._since_change = 0
        rate = sum(a for _, a in self._recent) / sum(d for d, _ in self._recent)
        if rate < rule.lower_below or verify_queue > rule.long_queue:
            self.k = max(rule.minimum, self.k - 1)
        elif rate > rule.raise_above and verify_queue <= rule.short_queue:
            self.k = min(rule.maximum, self.k + 1)
