"""The configuration of an experiment: which architectures serve which loads, live or simulated, and how often."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from engines.errors import InputError, require_name
from engines.pairs.permutation import PREFIX, parse_pair
from engines.pairs.prompts import check_alpha
from engines.policy.architecture import Step
from engines.policy.changes import changed
from engines.policy.draft_length import DraftLength, LoadAdaptiveDraftLength
from engines.record.masks import SUFFIX as MASKS
from engines.storage.reading import read_toml
from engines.storage.validation import Count, NotNegative, Positive, Settings, Whole, checked
from engines.workload.lengths import parse_lengths
from engines.workload.traces import read_trace
from engines.workload.workload import Workload, make_workload, with_sampling
from experiments.runner.cells import at_once, check_room, draft_length_label
from experiments.runner.layouts import Layout, layout_of, loads_of
from sim.costs import TOLERANCE

CONFIGS = Path(__file__).parents[1] / "configs"
RateSteps = Annotated[tuple[Positive, ...], Field(strict=False)]


def _name(value: str) -> str:
    require_name("name", value)
    return value


def built_in(configs: Path) -> list[str]:
    """Return the names of the configurations in a folder."""
    return sorted(path.stem for path in configs.glob("*.toml"))


def config_file(config: str | Path, configs: Path) -> Path:
    """Return the path of a configuration: a file, or a built-in one by name. Raises InputError for another name."""
    path, names = Path(config), built_in(configs)
    if str(path) in names:
        return configs / f"{path}.toml"
    if not path.suffix and not path.exists():
        raise InputError("config", str(path), f"no such file; give a TOML file, or one of {', '.join(names)}")
    return path


def read_rows(path: str | Path, requests: int | None, *cuts: int | None) -> Workload:
    """Read a trace, or its first `requests` rows. cuts: passed on to engines.workload.traces.read_trace.

    Raises InputError, also if the trace has fewer rows.
    """
    trace = read_trace(path, requests, *cuts)
    if requests is not None and len(trace.requests) < requests:
        remedy = f"the trace has {len(trace.requests)} requests; give at most that many, or leave it out for all"
        raise InputError("requests", requests, remedy)
    return trace


class WorkloadConfig(Settings):
    """The workload of each cell. Lengths are in tokens, as `engines.workload.lengths.parse_lengths` reads them.

    requests: minimum per cell, 32 by default (all of a trace). requests_per_client: minimum per client of a closed
    loop, so that busy cells reach a steady state. process, cv, rate_steps: arrivals of an open loop
    (engines.workload.workload.make_workload). trace: file with arrivals and lengths. alpha: acceptance of the
    requests, of those that a permutation pair has. Settings that do not apply to the load are refused.
    """

    requests: Count | None = None
    requests_per_client: Count = 1
    prompt_tokens: str = "64"
    output_tokens: str = "64"
    process: Literal["poisson", "gamma", "fixed"] | None = None
    cv: Positive | None = None
    rate_steps: RateSteps | None = None
    temperature: NotNegative = 0.0
    trace: str | None = None
    alpha: NotNegative | None = None

    def build(self, load: tuple[str, float] | None, seed: int) -> Workload:
        """Return the workload under one load, or of the trace if load is None. Raises InputError."""
        if self.trace is not None:
            owned = ("requests_per_client", "prompt_tokens", "output_tokens", "process", "cv", "rate_steps")
            self._refuse(owned, "a trace has its own arrivals and lengths; leave one of the two out")
            return self._with_alpha(with_sampling(read_rows(self.trace, self.requests), self.temperature, seed))
        kind, level = load or ("", 0)
        clients = int(level) if kind == "concurrency" else None
        if clients is None:
            self._refuse(("requests_per_client",), "an open loop has no clients; set requests instead")
        else:
            self._refuse(("process", "cv", "rate_steps"), "a closed loop has no arrival process; leave it out")
        made = make_workload(
            max(self.requests or 32, self.requests_per_client * (clients or 0)),
            parse_lengths("prompt_tokens", self.prompt_tokens),
            parse_lengths("output_tokens", self.output_tokens),
            concurrency=clients,
            rate=level if clients is None else None,
            process=self.process,
            cv=self.cv,
            rate_steps=self.rate_steps or (),
            seed=seed,
            temperature=self.temperature,
        )
        return self._with_alpha(made)

    def _with_alpha(self, workload: Workload) -> Workload:
        if self.alpha is None:
            return workload
        return dataclasses.replace(workload, info={**workload.info, "alpha": self.alpha})

    def _refuse(self, names: tuple[str, ...], remedy: str) -> None:
        """Raise InputError for the first of these settings that is not the default."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise InputError(f"workload.{name}", getattr(self, name), remedy)


class CalibrationConfig(Settings):
    """The points to measure for the profile, in about budget_s seconds.

    batches: requests in a draft or verify. contexts: context of a request before it, in tokens. prompt_tokens: total
    tokens of a prefill. packed: prompts that share a prefill. draft_lengths: k, by default all that the architectures
    can use; costs between them are interpolated.
    """

    batches: list[Count] = Field(default=[1, 2, 4, 6, 12], min_length=1)
    contexts: list[Count] = Field(default=[32, 256], min_length=1)
    prompt_tokens: list[Count] = Field(default=[16, 64, 128, 256], min_length=1)
    packed: list[Count] = Field(default=[1], min_length=1)
    draft_lengths: Annotated[list[Whole] | None, Field(min_length=1)] = None
    budget_s: Positive = 120.0

    def points(self, draft_lengths: list[int]) -> dict[str, list[int]]:
        """Return the arguments of calibrate.stage_costs.Grid."""
        return {**self.model_dump(exclude={"budget_s"}), "draft_lengths": self.draft_lengths or draft_lengths}


@dataclasses.dataclass(frozen=True)
class Point:
    """One cell to run: a layout under a load. name: valid as a folder name. workloads: one per repeat."""

    name: str
    layout: Layout
    workloads: tuple[Workload, ...]

    @property
    def repeats(self) -> range:
        """The numbers of its repeats, from 1."""
        return range(1, len(self.workloads) + 1)

    @property
    def draft_length(self) -> DraftLength:
        return self.layout.architecture.draft_length


class Experiment(Settings):
    """The whole file. Give `concurrencies` (closed loop), `rates` (open loop, requests per second) or a trace.

    mode: serve live, simulate, or both. architectures: names, paths of .toml files, or tables (a whole architecture
    or Changes). k: draft lengths for every architecture, as strings ("4", "2-8", "adaptive"); if empty, they keep
    their own. profile: the folder to simulate from; without it, the points of [calibration] are measured between the
    rounds of live cells. acceptance: for the simulations, as in `pdv simulate`; by default the tape of the live run,
    else the closed form of a permutation pair, else the profile's rates. replay: also simulate the recorded requests
    of each live run, to compare request by request. blind: also simulate each live cell as a person planning would,
    from the description of its workload and the profile's acceptance.
    """

    model_config = ConfigDict(title="config")

    name: Annotated[str, AfterValidator(_name)] = "experiment"
    mode: Literal["both", "live", "simulated"] = "both"
    architectures: Annotated[list[str | dict[str, Any]], Field(min_length=1)]
    concurrencies: list[Count] = Field(default=[])
    rates: list[Positive] = Field(default=[])
    k: list[str] = Field(default=[])
    repeats: Count = 1
    seed: Whole = 0
    pair: str | None = None
    device: str | None = None
    max_context: Count | None = None
    profile: str | None = None
    acceptance: str | None = None
    replay: bool = True
    blind: bool = True
    workload: WorkloadConfig = WorkloadConfig()
    calibration: CalibrationConfig | None = None

    @model_validator(mode="after")
    def _one_kind_of_load(self) -> Experiment:
        loads = {"concurrencies": self.concurrencies, "rates": self.rates, "workload.trace": self.workload.trace}
        given = [name for name, value in loads.items() if value]
        own = [
            isinstance(value, dict) and bool({"concurrencies", "rates"} & set(value)) for value in self.architectures
        ]
        if len(given) > 1 or (not given and not all(own)) or (self.workload.trace is not None and any(own)):
            remedy = "give exactly one of concurrencies, rates and workload.trace"
            raise InputError("loads", ", ".join(given) or None, remedy)
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Experiment:
        if self.mode == "simulated":
            for name in ("device", "calibration"):
                if getattr(self, name) is not None:
                    remedy = 'nothing runs on a device if mode is "simulated"; leave it out, or use "both"'
                    raise InputError(name, "given" if name == "calibration" else self.device, remedy)
        if self.mode == "live":
            for name in ("acceptance",) if self.weighs else ("profile", "acceptance"):
                if getattr(self, name) is not None:
                    remedy = 'nothing is simulated if mode is "live"; leave it out, or use "both"'
                    raise InputError(name, getattr(self, name), remedy)
        elif self.profile is None and self.calibration is None:
            raise InputError("profile", None, "simulations need one; give a folder, or a [calibration] section")
        return self

    @staticmethod
    def load(path: str | Path, **overrides: Any) -> Experiment:
        """Read and check a configuration, given by its path or the name of a built-in one (`demo`).

        Relative paths in it start at its folder. overrides: settings to replace. Raises InputError.
        """
        path = config_file(path, CONFIGS)
        values = _with_paths_from(path.parent, read_toml("config", path))
        return Experiment.from_dict({**values, **overrides})

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Experiment:
        """Check plain values, including the cells. Raises InputError naming the first wrong field."""
        experiment = checked(Experiment, values)
        experiment.points()
        experiment._check_times()
        return experiment

    @property
    def weighs(self) -> bool:
        """Whether a draft length weighs measured costs, so that a profile is needed before its cells are served."""
        return any(isinstance(each.architecture.draft_length, LoadAdaptiveDraftLength) for each in self.layouts())

    def _check_times(self) -> None:
        if self.weighs and self.profile is None and self.calibration is None:
            remedy = "a draft length that follows the load weighs costs; give a folder, or a [calibration] section"
            raise InputError("profile", None, remedy)

    def resolved(self) -> dict[str, Any]:
        """Return plain values that from_dict reads back."""
        return self.model_dump(exclude_none=True)

    def points(self) -> list[Point]:
        """Return all cells, ordered by architecture first. Raises InputError."""
        shared = loads_of(self.concurrencies, self.rates)
        workloads: dict[tuple[tuple[str, float] | None, str, int], tuple[Workload, ...]] = {}
        found: dict[str, Point] = {}
        for layout in self.layouts():
            settings, repeats = self._workload_of(layout), layout.repeats or self.repeats
            for load in layout.loads or shared or (None,):
                key = load, repr(settings), repeats
                if key not in workloads:
                    seeds = range(self.seed, self.seed + repeats)
                    workloads[key] = tuple(settings.build(load, seed) for seed in seeds)
                    check_room(workloads[key][0], self.max_context)
                level = "-trace" if load is None else f"-{load[0][0]}{load[1]:g}"
                name = f"{layout.architecture.name}{level}-k{draft_length_label(layout.architecture)}"
                if name in found:
                    remedy = "two cells have this name; drop a load or draft length, or rename an architecture"
                    raise InputError("cells", name, remedy)
                found[name] = Point(name, layout, workloads[key])
        self._check_calibration(list(found.values()))
        return list(found.values())

    def _workload_of(self, layout: Layout) -> WorkloadConfig:
        if not layout.workload:
            self._check_alpha(self.workload.alpha)
            return self.workload
        values = {**self.workload.model_dump(exclude_unset=True), **layout.workload}
        chosen = checked(WorkloadConfig, values, "architectures workload")
        self._check_alpha(chosen.alpha)
        return chosen

    def _check_alpha(self, alpha: float | None) -> None:
        if alpha is None:
            return
        if self.pair is None or not self.pair.startswith(PREFIX):
            remedy = f"acceptance is chosen for a permutation pair only; leave it out, or set pair = {PREFIX!r}..."
            raise InputError("workload.alpha", alpha, remedy)
        check_alpha(alpha, parse_pair(self.pair))

    def layouts(self) -> list[Layout]:
        """Return every architecture at every k. Raises InputError."""
        return [
            dataclasses.replace(layout, architecture=changed(layout.architecture, draft_length=k))
            for layout in map(layout_of, self.architectures)
            for k in (self.k or (None,))
        ]

    def calibration_points(self) -> dict[str, list[int]]:
        """Return the points of the calibration, with every draft length that an architecture can use.

        One of them is at least 1, since a profile has drafts too.
        """
        assert self.calibration is not None
        return self.calibration.points(
            sorted(self._draft_lengths() | ({1} if max(self._draft_lengths()) == 0 else set()))
        )

    def _draft_lengths(self) -> set[int]:
        """Return the draft lengths that the architectures can use."""
        rules = [layout.architecture.draft_length for layout in self.layouts()]
        return {k for rule in rules for k in range(rule.minimum, rule.maximum + 1)}

    def _check_calibration(self, points: list[Point]) -> None:
        """Raise InputError if a cell can need a point outside the range of the calibration."""
        if self.calibration is None or self.profile is not None:
            return
        measured, tolerated = self.calibration, 1 + TOLERANCE
        used, lengths = self._draft_lengths(), self.calibration_points()["draft_lengths"]
        drafts = [{k for k in each if k} or {1} for each in (lengths, used)]
        if not (min(lengths) <= min(used) <= max(used) <= max(lengths) and min(drafts[0]) <= min(drafts[1])):
            remedy = f"the architectures use {min(used)} to {max(used)}; calibrate from the least to the largest"
            remedy += ", and from the least draft, if 0 is among them"
            raise InputError("calibration.draft_lengths", lengths, remedy)
        for point in points:
            for field, needed in _needed(point, self.max_context).items():
                values = getattr(measured, field)
                if needed > max(values) * tolerated:
                    remedy = f"{point.name} can need {needed}; calibrate up to that, or change the cell"
                    raise InputError(f"calibration.{field}", values, remedy)


def _needed(point: Point, max_context: int | None) -> dict[str, int]:
    """Return the largest value of each calibration setting that a cell can need."""
    architecture = point.layout.architecture
    most = max(map(at_once, point.workloads))
    limits = {step: limit for lane in architecture.lanes for step, limit in lane.steps.items()}
    prefill = limits.pop(Step.PREFILL)
    requests = [request for workload in point.workloads for request in workload.requests]
    longest = max(request.prompt_tokens + request.max_tokens for request in requests)
    return {
        "batches": min(max(limits.values()), most),
        "packed": min(prefill, most),
        "contexts": longest if max_context is None else min(longest, max_context),
        "prompt_tokens": min(prefill, most) * max(request.prompt_tokens for request in requests),
    }


def _with_paths_from(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with relative paths resolved against the folder."""

    def path(value: Any) -> Any:
        return str(folder.resolve() / value) if isinstance(value, str) else value

    def architecture(value: Any) -> Any:
        if isinstance(value, dict) and "base" in value:
            return {**value, "base": architecture(value["base"])}
        return path(value) if isinstance(value, str) and value.endswith(".toml") else value

    resolved = dict(values)
    if "profile" in values:
        resolved["profile"] = path(values["profile"])
    if str(values.get("acceptance")).endswith(MASKS):
        resolved["acceptance"] = path(values["acceptance"])
    if isinstance(values.get("architectures"), list):
        resolved["architectures"] = [architecture(value) for value in values["architectures"]]
    if isinstance(workload := values.get("workload"), dict) and "trace" in workload:
        resolved["workload"] = {**workload, "trace": path(workload["trace"])}
    return resolved
