"""The first place where the batches of a live run and those of its simulation part."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from engines.record.run import Run

Members = tuple[tuple[int, int], ...]


class Dispatched(NamedTuple):
    """A batch when it was dispatched. members: requests with their output positions."""

    lane: str
    step: str
    time_s: float
    members: Members


class Parting(NamedTuple):
    """Where two runs part: the first batch of a lane (`number`, from 1) that is not the same in both.

    live, simulated: None if that run had no further batch in the lane.
    """

    lane: str
    number: int
    live: Dispatched | None
    simulated: Dispatched | None

    def __str__(self) -> str:
        sides = [f"{name}: {_told(batch)}" for name, batch in (("live", self.live), ("simulated", self.simulated))]
        return f"batch {self.number} of {self.lane}, {'; '.join(sides)}"


def parting(live: Run, simulated: Run) -> tuple[Parting | None, float]:
    """Return where the two runs part first in live time, or None if all batches are the same, and the share of live
    batches that are the same."""
    sides = [dispatched(run) for run in (live, simulated)]
    counts = [Counter((one.lane, one.step, one.members) for one in side) for side in sides]
    same = (counts[0] & counts[1]).total() / max(len(sides[0]), 1)
    found = []
    for lane in dict.fromkeys(one.lane for one in sides[0]):
        mine, theirs = ([one for one in side if one.lane == lane] for side in sides)
        for number in range(max(len(mine), len(theirs))):
            ours, other = (side[number] if number < len(side) else None for side in (mine, theirs))
            if ours is None or other is None or (ours.step, ours.members) != (other.step, other.members):
                found.append(Parting(lane, number + 1, ours, other))
                break
    return min(found, key=_when, default=None), same


def dispatched(run: Run) -> list[Dispatched]:
    """Return the batches of a run in the order of their dispatch."""
    members: dict[int, list[tuple[int, int]]] = {}
    for batch, request, position in run.steps[["batch_id", "request", "position"]].itertuples(index=False):
        members.setdefault(batch, []).append((request, position))
    batches = run.spans.drop_duplicates("batch_id").sort_values(["dispatched_s", "batch_id"])
    columns = batches[["batch_id", "lane", "step", "dispatched_s"]].itertuples(index=False)
    return [Dispatched(lane, step, at, tuple(sorted(members.get(batch, ())))) for batch, lane, step, at in columns]


def _when(one: Parting) -> float:
    return min(side.time_s for side in (one.live, one.simulated) if side is not None)


def _told(batch: Dispatched | None) -> str:
    if batch is None:
        return "none"
    requests = ", ".join(str(request) for request, _ in batch.members[:6])
    more = ", ..." if len(batch.members) > 6 else ""
    return f"{batch.step} of {len(batch.members)} (requests {requests}{more}) at {batch.time_s:.3f} s"
