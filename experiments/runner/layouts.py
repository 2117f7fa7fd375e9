"""The architectures of an experiment: unchanged or with changes, and optionally with their own loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from engines.errors import InputError
from engines.policy.architecture import Architecture, load_architecture
from engines.policy.changes import changed
from engines.storage.reading import read_toml
from engines.storage.validation import Count, Positive, Settings, Whole, checked

Loads = tuple[tuple[str, float], ...]  # ("concurrency", clients) or ("rate", requests per second)


class Changes(Settings):
    """An architecture given as changes to another one (`base`).

    streams: stream per lane name. verify_first_above: false turns it off. concurrencies, rates: loads that replace
    the experiment's. repeats, workload: settings that replace the experiment's. The rest: see
    engines.policy.changes.changed.
    """

    base: str
    name: str | None = None
    draft_length: str | None = None
    batch_limit: str | None = None
    workers: Count | None = None
    slots: Count | None = None
    permits: Count | None = None
    hybrid: Whole | None = None
    streams: dict[str, Whole] = Field(default={})
    priority: list[str] | None = None
    verify_first_above: Literal[False] | Whole | None = None
    concurrencies: list[Count] = Field(default=[])
    rates: list[Positive] = Field(default=[])
    repeats: Count | None = None
    workload: dict[str, Any] = Field(default={})

    def build(self) -> Architecture:
        """Return the changed architecture. Raises InputError."""
        simple = {"draft_length", "batch_limit", "workers", "slots", "permits", "hybrid"}
        built = changed(load_architecture(self.base), **self.model_dump(include=simple))
        lanes = {lane.name: lane for lane in built.lanes}
        for name, stream in self.streams.items():
            if name not in lanes:
                raise InputError("architectures streams", name, f"no such lane; use one of {', '.join(lanes)}")
            lanes[name] = dataclasses.replace(lanes[name], stream=stream)
        changes: dict[str, Any] = {"lanes": tuple(lanes.values())}
        if self.name is not None:
            changes["name"] = self.name
        if self.priority is not None:
            changes["priority"] = tuple(self.priority)
        if self.verify_first_above is not None:
            changes["verify_first_above"] = None if self.verify_first_above is False else self.verify_first_above
        return built.replace(**changes)


@dataclasses.dataclass(frozen=True)
class Layout:
    """An architecture of the grid.

    slots_named: whether its slots were set explicitly; otherwise a live engine takes as many as fit. loads: its own
    loads, if any. repeats, workload: settings that replace the experiment's.
    """

    architecture: Architecture
    slots_named: bool
    loads: Loads = ()
    workload: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    repeats: int | None = None


def layout_of(value: str | dict[str, Any]) -> Layout:
    """Return the layout of an entry in a configuration: a name, a path of a .toml file, or a table.

    Raises InputError.
    """
    if isinstance(value, str):
        return Layout(load_architecture(value), names_slots(value))
    if "base" not in value:
        return Layout(Architecture.from_dict(value), "slots" in value)
    changes = checked(Changes, value, "architectures")
    if changes.concurrencies and changes.rates:
        raise InputError("architectures concurrencies, rates", value["base"], "give one of the two")
    loads = loads_of(changes.concurrencies, changes.rates)
    slots_named = changes.slots is not None or names_slots(changes.base)
    return Layout(changes.build(), slots_named, loads, changes.workload, changes.repeats)


def loads_of(concurrencies: list[int], rates: list[float]) -> Loads:
    """Return the loads, closed loops first."""
    return (*(("concurrency", n) for n in concurrencies), *(("rate", rate) for rate in rates))


def names_slots(architecture: str) -> bool:
    """Return whether an architecture sets its slots. Built-in ones do not: live, they take as many as fit."""
    path = Path(architecture)
    return path.suffix == ".toml" and "slots" in read_toml("architecture", path)
