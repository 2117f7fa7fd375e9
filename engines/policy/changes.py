"""Change settings of an architecture, written as on the command line or in a configuration."""

from __future__ import annotations

import dataclasses

from engines.errors import InputError
from engines.policy.architecture import Architecture, Step
from engines.policy.draft_length import parse_draft_length
from engines.texts import whole_in


def parse_batch_limits(text: str) -> dict[Step, int]:
    """Parse batch limits (requests) such as "draft=12,verify=24". Raises InputError."""
    limits = {}
    for item in text.split(","):
        step, _, limit = item.partition("=")
        known = {str(member): member for member in Step}
        size = whole_in(limit.strip())
        if step.strip() not in known or not size:
            remedy = f"write STEP=N, separated by commas; the steps are {', '.join(known)}"
            raise InputError("batch_limit", text, remedy)
        limits[known[step.strip()]] = size
    return limits


def changed(
    architecture: Architecture,
    *,
    draft_length: str | None = None,
    batch_limit: str | None = None,
    workers: int | None = None,
    slots: int | None = None,
    permits: int | None = None,
    hybrid: int | None = None,
) -> Architecture:
    """Return a copy with the given settings changed.

    workers: per lane, for all run-to-completion lanes or, if there are none, for all lanes.
    permits: steps that may run at once per device.
    hybrid: draft and verify run as one step while at most this many requests are active.
    Raises InputError, also for a batch limit of a step that the architecture does not have.
    """
    if batch_limit is not None:
        limits = parse_batch_limits(batch_limit)
        present = {step for lane in architecture.lanes for step in lane.steps}
        for step in limits:
            if step not in present:
                remedy = f"{architecture.name} has no such step; it has {', '.join(sorted(present))}"
                raise InputError("batch_limit", str(step), remedy)
        architecture = architecture.with_batch_limits(limits)
    if workers is not None:
        carrying = any(lane.run_to_completion for lane in architecture.lanes)
        lanes = tuple(
            dataclasses.replace(lane, workers=workers) if lane.run_to_completion or not carrying else lane
            for lane in architecture.lanes
        )
        architecture = architecture.replace(lanes=lanes)
    changes: dict[str, object] = {}
    if draft_length is not None:
        changes["draft_length"] = parse_draft_length(draft_length)
    for name, value in (("slots", slots), ("permits", permits), ("hybrid_at_or_below", hybrid)):
        if value is not None:
            changes[name] = value
    return architecture.replace(**changes) if changes else architecture
