"""Compute the rates of streams that ran together from their spans on the device. Needs no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median

Span = tuple[float, float]  # start and end, seconds on one clock
HICCUP = 3.0
SLOWEST, FASTEST = 1e-4, 1.05  # range of rates; they can be measured slightly above 1


def no_hiccups(spans: Sequence[Span]) -> list[bool]:
    """Return for each span whether it took less than HICCUP times the median: longer ones had the machine stall."""
    longest = HICCUP * median(end - start for start, end in spans)
    return [end - start <= longest for start, end in spans]


def times_beside(spans: Sequence[Sequence[Span]]) -> list[tuple[int, dict[frozenset[int], float]]]:
    """Return, for each stream, how many of its spans count and their seconds by the set of other streams that ran.

    spans: those of each stream, in order. A span counts if it starts after all streams have begun, ends before the
    first stream has ended for good, and is no hiccup of the machine.
    """
    begin, end = max(s[0][0] for s in spans), min(s[-1][1] for s in spans)
    counted = [
        [begin <= start and stop <= end and ok for (start, stop), ok in zip(each, no_hiccups(each), strict=True)]
        for each in spans
    ]
    moments = sorted(
        (moment, starts, stream, counts)
        for stream, each in enumerate(spans)
        for (start, stop), counts in zip(each, counted[stream], strict=True)
        for moment, starts in ((start, True), (stop, False))
    )
    beside: list[dict[frozenset[int], float]] = [defaultdict(float) for _ in spans]
    running: dict[int, bool] = {}  # running streams, and whether their current span counts
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
    """Return the rate of a stream while all of `others` ran, so that its total work is accounted for.

    work_s: total solo duration of its spans, in seconds. beside: from times_beside. rate_beside: its rate next to
    some of the others, or None if unknown; each further stream is then assumed to slow it by the same factor. If they
    never all ran together, the rate is unknown and returned as 1.
    """
    from scipy.optimize import brentq  # takes 0.2 s to import

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
