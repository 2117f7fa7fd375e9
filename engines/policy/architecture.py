"""Architectures as values: the lanes, the steps that each lane runs, and the scheduling rules.

`engines.policy.scheduler.Scheduler` interprets the value, both in the live engine and in the simulator. A new
architecture is therefore a new value, in Python or TOML, and needs no new code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from engines.errors import InputError, require_name, require_whole
from engines.policy.draft_length import (
    LOAD,
    AdaptiveDraftLength,
    DraftLength,
    FixedDraftLength,
    LoadAdaptiveDraftLength,
)
from engines.storage.reading import read_toml

MOST_SLOTS = 1_000_000  # far beyond any device's memory
MOST_WORKERS = 10_000  # per lane: far more than any device runs at once
MOST_STREAMS, MOST_DEVICES = 10_000, 1_000  # per host
MOST_PRIORITY = 100  # of a stream; CUDA uses -5 to 0
RENAMED = {"running_stages": "permits", "carries_request": "run_to_completion"}  # settings renamed in run schema 3


class Stage(StrEnum):
    """What a request can need next."""

    PREFILL = "prefill"
    DRAFT = "draft"
    VERIFY = "verify"


class Step(StrEnum):
    """What a lane runs as one unit: a stage, or draft and verify together."""

    PREFILL = "prefill"
    DRAFT = "draft"
    VERIFY = "verify"
    DRAFT_VERIFY = "draft+verify"

    @property
    def stage(self) -> Stage:
        """The stage that a request must need to join this step."""
        return Stage.DRAFT if self is Step.DRAFT_VERIFY else Stage(self.value)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of this step, in order. Prefill ends with the target model, which emits the first token."""
        return _SEGMENTS[self]


class Segment(StrEnum):
    """The part of a step that one model runs.

    Costs and contention are measured per segment because the small kernels of a draft model and the large ones of
    a target model share a device differently.
    """

    PREFILL_DRAFT = "prefill_draft"
    PREFILL_TARGET = "prefill_target"
    DRAFT = "draft"
    VERIFY = "verify"

    @property
    def of_draft_model(self) -> bool:
        """Whether the draft model runs it, and not the target."""
        return self in (Segment.PREFILL_DRAFT, Segment.DRAFT)


_SEGMENTS = {
    Step.PREFILL: (Segment.PREFILL_DRAFT, Segment.PREFILL_TARGET),
    Step.DRAFT: (Segment.DRAFT,),
    Step.VERIFY: (Segment.VERIFY,),
    Step.DRAFT_VERIFY: (Segment.DRAFT, Segment.VERIFY),
}


@dataclass(frozen=True)
class Lane:
    """Workers that run certain steps on one CUDA stream.

    steps: the steps that the lane runs, each with its batch limit (requests).
    workers: how many batches of this lane can run at once.
    stream: number of the CUDA stream. Lanes or workers with the same number on a device share it, first come,
    first served. stream_priority: CUDA's priority (negative is more urgent). device: index of the device.
    run_to_completion: each worker takes one request and runs all its steps in this lane until the request ends.
    """

    name: str
    steps: Mapping[Step, int]
    workers: int = 1
    stream: int = 0
    stream_priority: int = 0
    device: int = 0
    run_to_completion: bool = False

    def __post_init__(self) -> None:
        require_name("lanes.name", self.name)
        where = f"lanes.{self.name}"
        try:
            steps = {Step(step): limit for step, limit in self.steps.items()}
        except (ValueError, AttributeError) as error:
            known = ", ".join(f'"{s.value}"' for s in Step)
            raise InputError(f"{where}.steps", self.steps, f"map each of {known} to its batch limit") from error
        object.__setattr__(self, "steps", steps)
        if not steps:
            raise InputError(f"{where}.steps", {}, "give the lane at least one step")
        for step, limit in steps.items():
            require_whole(f"{where}.steps.{step}", limit, 1, MOST_SLOTS)
        if not isinstance(self.run_to_completion, bool):
            raise InputError(f"{where}.run_to_completion", self.run_to_completion, "use true or false")
        if self.run_to_completion and max(steps.values()) > 1:
            raise InputError(f"{where}.steps", self.steps, "a run-to-completion lane needs batch limits of 1")
        require_whole(f"{where}.workers", self.workers, 1, MOST_WORKERS)
        require_whole(f"{where}.stream", self.stream, 0, MOST_STREAMS - 1)
        require_whole(f"{where}.device", self.device, 0, MOST_DEVICES - 1)
        require_whole(f"{where}.stream_priority", self.stream_priority, -MOST_PRIORITY, MOST_PRIORITY)


@dataclass(frozen=True)
class Architecture:
    """Lanes, limits and rules of an engine for speculative decoding.

    priority: order in which stages start when permits are short, or when one worker serves several stages. Empty
    means first come, first served.
    verify_first_above: verify goes first, whatever the priority, while its queue is longer than the draft queue by
    more than this many requests. None switches the rule off.
    hybrid_at_or_below: when at most this many requests hold slots, a lane that drafts runs draft and verify as one
    step. 0 switches hybrid mode off.
    slots: places in the KV cache pool. A request holds one from the start of its prefill to its end.
    permits: how many steps may run at once per device. None gives every worker a permit.
    queue_limit: how many requests may wait for a slot. None means no limit.
    """

    name: str
    lanes: tuple[Lane, ...]
    priority: tuple[Stage, ...] = ()
    verify_first_above: int | None = None
    hybrid_at_or_below: int = 0
    draft_length: DraftLength = field(default_factory=FixedDraftLength)
    slots: int = 64
    permits: int | None = None
    queue_limit: int | None = None

    def __post_init__(self) -> None:
        require_name("name", self.name)
        object.__setattr__(self, "lanes", tuple(self.lanes))
        if not self.lanes:
            raise InputError("lanes", [], "give the architecture at least one lane")
        names = [lane.name for lane in self.lanes]
        if len(set(names)) < len(names):
            raise InputError("lanes", names, "give every lane a different name")
        self._check_steps()
        try:
            object.__setattr__(self, "priority", tuple(Stage(stage) for stage in self.priority))
        except (ValueError, TypeError) as error:
            raise InputError("priority", self.priority, f"list stages: {', '.join(Stage)}") from error
        if self.priority and sorted(self.priority) != sorted(Stage):
            remedy = "list each stage once, or leave it empty for first come, first served"
            raise InputError("priority", [str(stage) for stage in self.priority], remedy)
        if self.verify_first_above is not None:
            require_whole("verify_first_above", self.verify_first_above, 0)
            if not self.priority or not self._runs(Step.VERIFY):
                raise InputError(
                    "verify_first_above", self.verify_first_above, "needs a priority order and a verify step"
                )
        require_whole("hybrid_at_or_below", self.hybrid_at_or_below, 0)
        if self.hybrid_at_or_below:
            if not self._runs(Step.DRAFT):
                raise InputError("hybrid_at_or_below", self.hybrid_at_or_below, "needs a lane with a draft step")
            if self.lane_for(Stage.DRAFT)[0].device != self.lane_for(Stage.VERIFY)[0].device:
                remedy = "put the lanes that draft and verify on one device, or use 0"
                raise InputError("hybrid_at_or_below", self.hybrid_at_or_below, remedy)
        require_whole("slots", self.slots, 1, MOST_SLOTS)
        if self.permits is not None:
            require_whole("permits", self.permits, 1)
        if self.queue_limit is not None:
            require_whole("queue_limit", self.queue_limit, 1)

    def _runs(self, step: Step) -> bool:
        return any(step in lane.steps for lane in self.lanes)

    def _check_steps(self) -> None:
        steps = [step for lane in self.lanes for step in lane.steps]
        separate = [Step.PREFILL, Step.DRAFT, Step.VERIFY]
        if sorted(steps) not in (sorted(separate), sorted([Step.PREFILL, Step.DRAFT_VERIFY])):
            raise InputError(
                "lanes",
                [str(step) for step in steps],
                'give "prefill" to one lane, and either "draft" and "verify" or "draft+verify" to one lane each',
            )

    def lane_for(self, stage: Stage) -> tuple[Lane, Step]:
        """Return the lane and the step that serve requests in need of `stage`."""
        for lane in self.lanes:
            for step in lane.steps:
                if step.stage is stage:
                    return lane, step
        raise KeyError(stage)  # only for verify, where draft+verify is one step

    @property
    def drafts(self) -> bool:
        """Whether anything can ever be drafted. Otherwise the draft model never runs, not even in prefill."""
        return self.draft_length.maximum > 0

    @property
    def catches_up(self) -> bool:
        """Whether the draft model may have tokens to catch up with: k can be 0, and can rise from there."""
        return self.drafts and self.draft_length.minimum == 0

    @property
    def devices(self) -> tuple[int, ...]:
        return tuple(sorted({lane.device for lane in self.lanes}))

    def permits_on(self, device: int) -> int:
        """Return how many steps may run at once on a device."""
        if self.permits is not None:
            return self.permits
        return sum(lane.workers for lane in self.lanes if lane.device == device)

    def replace(self, **changes: Any) -> Architecture:
        """Return a copy with these values changed. The copy is validated again."""
        return dataclasses.replace(self, **changes)

    def with_batch_limits(self, limits: Mapping[Step, int]) -> Architecture:
        """Return a copy with these batch limits (requests). Other steps keep theirs."""
        lanes = tuple(
            dataclasses.replace(lane, steps={s: limits.get(s, n) for s, n in lane.steps.items()})
            for lane in self.lanes
        )
        return self.replace(lanes=lanes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as in TOML. Settings that are None are left out."""
        lanes = [
            {**_plain(lane), "steps": {str(step): limit for step, limit in lane.steps.items()}} for lane in self.lanes
        ]
        rule = self.draft_length
        length: int | dict[str, Any] = rule.k if isinstance(rule, FixedDraftLength) else _plain(rule)
        if isinstance(rule, LoadAdaptiveDraftLength):
            length = {"follows": LOAD, **_plain(rule)}
        return {
            **_plain(self),
            "lanes": lanes,
            "priority": [str(stage) for stage in self.priority],
            "draft_length": length,
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Architecture:
        """Build an architecture from plain values, for instance parsed TOML, and validate it.

        Settings may also have their former names (RENAMED). Raises InputError.
        """
        values = _renamed(values)
        lanes = values.pop("lanes", None)
        if not isinstance(lanes, list) or not all(isinstance(lane, Mapping) for lane in lanes):
            raise InputError("lanes", lanes, "write one [[lanes]] table per lane")
        if "draft_length" in values:
            values["draft_length"] = _draft_length(values["draft_length"])
        return _build(
            Architecture, "", {**values, "lanes": tuple(_build(Lane, "lanes.", _renamed(lane)) for lane in lanes)}
        )


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(name, name): value for name, value in values.items()}


def _draft_length(value: Any) -> DraftLength:
    if isinstance(value, Mapping):
        values = dict(value)
        follows = values.pop("follows", None)
        if follows not in (None, LOAD):
            remedy = f'use "{LOAD}", or leave it out for one that follows acceptance by rule'
            raise InputError("draft_length.follows", follows, remedy)
        return _build(LoadAdaptiveDraftLength if follows else AdaptiveDraftLength, "draft_length.", values)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError("draft_length", value, "give a number, or a table for an adaptive draft length")
    return FixedDraftLength(value)


def _build(kind: Any, prefix: str, values: Mapping[str, Any]) -> Any:
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise InputError(f"{prefix}{name}", values[name], f"no such setting; use {', '.join(known)}")
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise InputError(f"{prefix}{name}", None, "this setting is required")
    return kind(**values)


def _plain(value: Any) -> dict[str, Any]:
    fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {name: v for name, v in fields if v is not None}


def device_of(replica: int, device: int, devices: Iterable[int]) -> int:
    """Return the number of a replica's device in a fleet. Each replica's devices follow those of the one before.

    devices: those of one replica.
    """
    return replica * (max(devices) + 1) + device


BASELINE = Architecture(
    "baseline",
    lanes=(Lane("worker", {Step.PREFILL: 1, Step.DRAFT: 1, Step.VERIFY: 1}, workers=4, run_to_completion=True),),
)
PD = Architecture(
    "pd",
    lanes=(Lane("prefill", {Step.PREFILL: 1}, stream=0), Lane("decode", {Step.DRAFT_VERIFY: 6}, stream=1)),
    priority=(Stage.DRAFT, Stage.VERIFY, Stage.PREFILL),
)
PDV = Architecture(
    "pdv",
    lanes=(
        Lane("draft", {Step.DRAFT: 6}, stream=0),
        Lane("verify", {Step.VERIFY: 12}, stream=1),
        Lane("prefill", {Step.PREFILL: 1}, stream=2),
    ),
    priority=(Stage.DRAFT, Stage.VERIFY, Stage.PREFILL),
    verify_first_above=2,
    hybrid_at_or_below=1,
)
TARGET_ONLY = PD.replace(name="target-only", draft_length=FixedDraftLength(0))
"""PD without speculation: its decode lane runs the target alone, one token per request and step."""
ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in (BASELINE, PD, PDV, TARGET_ONLY)}


def load_architecture(name: str) -> Architecture:
    """Return a built-in architecture by name, or read one from a .toml file. Raises InputError."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    path = Path(name)
    if path.suffix != ".toml":
        raise InputError("architecture", name, f"use {', '.join(ARCHITECTURES)} or the path of a .toml file")
    return Architecture.from_dict(read_toml("architecture", path))
