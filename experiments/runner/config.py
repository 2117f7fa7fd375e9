"""An experiment as a TOML file: which architectures under which loads, measured and simulated how often."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from engines.errors import InputError, require_name
from engines.policy.architecture import Architecture, load_architecture
from engines.policy.changes import changed
from engines.storage.reading import read_toml
from engines.storage.validation import Count, NotNegative, Positive, Settings, Whole, checked
from engines.workload.lengths import parse_lengths
from engines.workload.traces import read_trace
from engines.workload.workload import Workload, make_workload, with_sampling
from experiments.runner.cells import draft_length_label

CONFIGS = Path(__file__).parents[1] / "configs"


def _name(value: str) -> str:
    require_name("name", value)
    return value


class WorkloadConfig(Settings):
    """What each cell serves. Lengths in tokens, as `engines.workload.lengths.parse_lengths` reads them.

    requests: of a cell at least, 32 unless told otherwise (all of a trace); requests_per_client: for each client of a
    closed loop, so that busy cells reach a steady state too. process, cv: of the arrivals of an open loop. trace: a
    file that gives arrivals and lengths. A setting that the load has no use for is refused.
    """

    requests: Count | None = None
    requests_per_client: Count = 1
    prompt_tokens: str = "64"
    output_tokens: str = "64"
    process: Literal["poisson", "gamma", "fixed"] | None = None
    cv: Positive | None = None
    temperature: NotNegative = 0.0
    trace: str | None = None

    def build(self, concurrency: int | None = None, rate: float | None = None, seed: int = 0) -> Workload:
        """The workload of one cell. Raises InputError."""
        if self.trace is not None:
            owned = ("requests_per_client", "prompt_tokens", "output_tokens", "process", "cv")
            self._refuse(owned, "a trace has arrivals and lengths of its own; leave one of the two out")
            return with_sampling(read_trace(self.trace, limit=self.requests), self.temperature, seed)
        if concurrency is None:
            self._refuse(("requests_per_client",), "an open loop has no clients; set requests instead")
        else:
            self._refuse(("process", "cv"), "a closed loop has no arrivals to choose; leave it out")
        return make_workload(
            max(self.requests or 32, self.requests_per_client * (concurrency or 0)),
            parse_lengths("prompt_tokens", self.prompt_tokens),
            parse_lengths("output_tokens", self.output_tokens),
            concurrency=concurrency,
            rate=rate,
            process=self.process,
            cv=self.cv,
            seed=seed,
            temperature=self.temperature,
        )

    def _refuse(self, names: tuple[str, ...], remedy: str) -> None:
        """Raises InputError for the first of these settings that was given."""
        for name in names:
            if name in self.model_fields_set:
                raise InputError(f"workload.{name}", getattr(self, name), remedy)


class CalibrationConfig(Settings):
    """The points that are measured for the profile: batches (requests of a draft or verify), contexts (tokens of a
    request before it), prompt_tokens (of a prefill in all) and packed (prompts that share a prefill), in about
    budget_s seconds. Draft lengths are those that the architectures use."""

    batches: list[Count] = Field(default=[1, 2, 4, 6, 12])
    contexts: list[Count] = Field(default=[32, 256])
    prompt_tokens: list[Count] = Field(default=[16, 64, 128, 256])
    packed: list[Count] = Field(default=[1])
    budget_s: Positive = 120.0

    def points(self, draft_lengths: list[int]) -> dict[str, list[int]]:
        """As calibrate.stage_costs.Grid takes them."""
        return {**self.model_dump(exclude={"budget_s"}), "draft_lengths": draft_lengths}


class Point(NamedTuple):
    """One cell to run: an architecture, its workload, and a name that can be a folder's."""

    name: str
    architecture: Architecture
    workload: Workload

    def describe(self) -> dict[str, Any]:
        """All that decides what the cell is, as plain values."""
        workload = self.workload
        return {
            "architecture": self.architecture.to_dict(),
            "requests": [dataclasses.astuple(request) for request in workload.requests],
            "concurrency": workload.concurrency,
            "think_s": workload.think_s,
        }


class Changes(Settings):
    """An architecture in a configuration, as another one with settings to change
    (engines.policy.changes.changed)."""

    base: str
    name: str | None = None
    draft_length: str | None = None
    batch_limit: str | None = None
    workers: Count | None = None
    slots: Count | None = None
    permits: Count | None = None
    hybrid: Whole | None = None

    def build(self) -> Architecture:
        """The changed architecture. Raises InputError."""
        architecture = changed(load_architecture(self.base), **self.model_dump(exclude={"base", "name"}))
        return architecture if self.name is None else architecture.replace(name=self.name)


class Experiment(Settings):
    """The whole file. Give `concurrencies` (closed loop) or `rates` (open loop, requests a second) or a trace.

    architectures: names, paths of .toml files, or tables: either a whole architecture, or `base = "pdv"` with
    settings to change (draft_length, batch_limit, workers, slots, permits, hybrid) and a name.
    k: draft lengths to try with every architecture, each as text: "4", "2-8", "adaptive"; empty keeps their own.
    """

    model_config = ConfigDict(title="config")

    name: Annotated[str, AfterValidator(_name)] = "experiment"
    architectures: Annotated[list[str | dict[str, Any]], Field(min_length=1)]
    concurrencies: list[Count] = Field(default=[])
    rates: list[Positive] = Field(default=[])
    k: list[str] = Field(default=[])
    repeats: Count = 1
    seed: Whole = 0
    pair: str = "embedded"
    device: str = "cpu"
    max_context: Count | None = None
    workload: WorkloadConfig = WorkloadConfig()
    calibration: CalibrationConfig = CalibrationConfig()

    @model_validator(mode="after")
    def _one_kind_of_load(self) -> Experiment:
        if sum(map(bool, (self.concurrencies, self.rates, self.workload.trace))) != 1:
            raise ValueError("give exactly one of concurrencies, rates and workload.trace")
        return self

    @staticmethod
    def load(path: str | Path) -> Experiment:
        """Read and check a config: a path, or the name of one that is shipped (`demo`). Raises InputError."""
        path = Path(path)
        if not path.suffix and (CONFIGS / f"{path}.toml").is_file():
            path = CONFIGS / f"{path}.toml"
        return Experiment.from_dict(read_toml("config", path))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Experiment:
        """Check plain values, points included. Raises InputError with the name of the first wrong field."""
        experiment = checked(Experiment, values)
        list(experiment.points())
        return experiment

    def points(self) -> Iterator[Point]:
        """All cells, loads outermost, so that neighbours in time differ in architecture. Raises InputError."""
        loads: list[dict[str, Any]] = [{"concurrency": n} for n in self.concurrencies]
        loads += [{"rate": rate} for rate in self.rates]
        seen = set()
        for load in loads or [{}]:
            workload = self.workload.build(**load, seed=self.seed)
            level = "".join(f"-{name[0]}{value:g}" for name, value in load.items()) or "-trace"
            for architecture in self.layouts():
                name = f"{architecture.name}{level}-k{draft_length_label(architecture)}"
                if name in seen:
                    remedy = "two cells have this name; drop a load or draft length, or name architectures apart"
                    raise InputError("cells", name, remedy)
                seen.add(name)
                yield Point(name, architecture, workload)

    def layouts(self) -> list[Architecture]:
        """Every architecture at every k. Raises InputError."""
        bases = [_architecture(value) for value in self.architectures]
        choices: list[str | None] = [*self.k] or [None]
        return [changed(base, draft_length=k) for base in bases for k in choices]


def _architecture(value: str | dict[str, Any]) -> Architecture:
    if isinstance(value, str):
        return load_architecture(value)
    if "base" not in value:
        return Architecture.from_dict(value)
    return checked(Changes, value, "architectures").build()
