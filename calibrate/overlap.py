"""How fast streams went while others ran beside them, from the spans that they had the device. Needs no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from scipy.optimize import brentq

Span = tuple[float, float]  # start and end, seconds on one clock
SLOWEST, FASTEST = 1e-4, 1.05  # a rate against running alone can be measured a little above 1


def times_beside(spans: Sequence[Sequence[Span]]) -> list[tuple[int, dict[frozenset[int], float]]]:
    """For each stream: how many of its spans count, and the seconds of them in which just these others ran too.

    spans: each stream's, in order. Those count that lie between the moment at which all streams have begun and the
    one at which the first has ended for good.
    """
    begin, end = max(s[0][0] for s in spans), min(s[-1][1] for s in spans)
    counted = [[begin <= start and stop <= end for start, stop in each] for each in spans]
    moments = sorted(
        (moment, starts, stream, counts)
        for stream, each in enumerate(spans)
        for (start, stop), counts in zip(each, counted[stream], strict=True)
        for moment, starts in ((start, True), (stop, False))
    )
    beside: list[dict[frozenset[int], float]] = [defaultdict(float) for _ in spans]
    running: dict[int, bool] = {}  # the streams that run now, and whether this span of theirs counts
    last = begin
    for moment, starts, stream, counts in moments:
        for each, mine in running.items():
            if mine:
                beside[each][frozenset(running) - {each}] += moment - last
        last = moment
        if starts:
            running[stream] = counts
        else:
            running.pop(stream, None)
    return [(sum(each), dict(times)) for each, times in zip(counted, beside, strict=True)]


def rate_beside_all(
    work_s: float, beside: Mapping[frozenset[int], float], others: frozenset[int],
    rate_beside: Callable[[frozenset[int]], float | None],
) -> float:  # fmt: skip
    """The rate of a stream while all of `others` ran: what is left of its work once the rest of its time is counted.

    work_s: its spans' durations, had it been alone. beside: as times_beside found them. rate_beside: its rate beside
    some of the others, where that is known; where not, it is taken to fall by the same factor with every other.
    Without any time together the rate is unknown, and 1.
    """
    if beside.get(others, 0.0) <= 0:
        return 1.0

    def missing(rate: float) -> float:
        done = 0.0
        for some, seconds in beside.items():
            known = rate_beside(some) if some and some != others else None
            done += seconds * (known if known is not None else rate ** (len(some) / len(others)))
        return work_s - done

    if missing(FASTEST) >= 0:
        return FASTEST
    return SLOWEST if missing(SLOWEST) <= 0 else float(brentq(missing, SLOWEST, FASTEST))
