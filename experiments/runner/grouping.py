"""Which cells of an experiment one live engine serves, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from engines.policy.draft_length import LoadAdaptiveDraftLength, covers
from engines.workload.workload import Workload
from experiments.runner.cells import fingerprint
from experiments.runner.config import Point


def by_layout(points: Sequence[Point]) -> list[list[Point]]:
    """Return the points of each layout."""
    return [list(group) for _, group in groupby(points, key=lambda point: id(point.layout))]


def by_engine(points: Sequence[Point], context_named: bool) -> list[list[Point]]:
    """Return the points that one engine can serve together, the loads in order, each with all its draft lengths in
    turn, so that they are compared over the same period.

    They are those of a layout, and of others with the same settings but another name, load or, within the bounds of
    the widest, draft length, if they name their slots. Without a named context, the longest depends on the draft
    length, which is then not shared.
    """
    loads = [id(point.workloads) for point in points]
    alike: dict[object, list[Point]] = {}
    for point in sorted(points, key=lambda point: loads.index(id(point.workloads))):
        settings = {**point.layout.architecture.to_dict(), "name": "", "draft_length": 0}
        same: object = fingerprint(settings) if point.layout.slots_named else id(point.layout)
        alike.setdefault(same, []).append(point)
    groups: dict[object, list[Point]] = {}
    for same, members in alike.items():
        lengths = [point.draft_length for point in sorted(members, key=_width, reverse=True)]
        for point in members:
            own = point.draft_length
            cover = next(length for length in lengths if covers(length, own)) if context_named else own
            groups.setdefault((same, cover), []).append(point)
    return list(groups.values())


def widest(points: Sequence[Point]) -> Point:
    """Return the point of points for one engine whose draft length covers the others."""
    return max(points, key=_width)


def workloads_of(points: Sequence[Point]) -> list[Workload]:
    """Return the workloads of all repeats."""
    return [workload for point in points for workload in point.workloads]


def _width(point: Point) -> tuple[int, bool]:
    """Return what orders draft lengths so that none comes before one that covers it and that it does not cover."""
    length = point.draft_length
    return length.maximum - length.minimum, isinstance(length, LoadAdaptiveDraftLength)
