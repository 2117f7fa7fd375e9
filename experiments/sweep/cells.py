"""Cells of a sweep: the settings of each, and what they determine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from engines.errors import InputError
from engines.policy.architecture import Architecture, Step
from engines.policy.changes import changed
from engines.storage.validation import Count, NotNegative, Positive, Settings, Whole
from engines.workload.lengths import parse_lengths
from engines.workload.workload import Workload
from experiments.runner.cells import draft_length_label, fingerprint
from experiments.runner.config import RateSteps, WorkloadConfig
from experiments.runner.layouts import layout_of
from experiments.runner.predict import AcceptanceChoice, parse_acceptance
from sim.routers import ALONE, Fleet

AS_TEXT = ("k", "acceptance", "prompt_tokens", "output_tokens")
"""Settings that are texts in a configuration; an axis may list numbers."""
SLO = ("slo_ttft_s", "slo_tpot_s")
DEFAULT_REQUESTS = 32
OF_WORKLOAD = tuple(WorkloadConfig.model_fields)


class CellSettings(Settings):
    """The settings of one cell; each of them can be an axis.

    architecture: name, path of a .toml file, or a table, as in an experiment. k, batch_limit, workers, slots,
    permits, hybrid: changes to it (engines.policy.changes.changed). prefill_limit: largest batch of prefill.
    decode_limit: largest batch of draft, of verify, and of both as one step. concurrency, rate: the load. replicas,
    router: see sim.routers.Fleet. slo_ttft_s, slo_tpot_s: what a request has to meet, in seconds. The rest: see
    WorkloadConfig, and `acceptance` of an experiment.
    """

    architecture: str | dict[str, Any]
    k: str | None = None
    batch_limit: str | None = None
    prefill_limit: Count | None = None
    decode_limit: Count | None = None
    workers: Count | None = None
    slots: Count | None = None
    permits: Count | None = None
    hybrid: Whole | None = None
    acceptance: str | None = None
    concurrency: Count | None = None
    rate: Positive | None = None
    requests: Count | None = None
    requests_per_client: Count = 1
    prompt_tokens: str = "64"
    output_tokens: str = "64"
    process: Literal["poisson", "gamma", "fixed"] | None = None
    cv: Positive | None = None
    rate_steps: RateSteps | None = None
    temperature: NotNegative = 0.0
    trace: str | None = None
    replicas: Count = 1
    router: str = ALONE.router
    slo_ttft_s: Positive | None = None
    slo_tpot_s: Positive | None = None

    @model_validator(mode="after")
    def _one_load(self) -> CellSettings:
        loads = {"concurrency": self.concurrency, "rate": self.rate, "trace": self.trace}
        given = [name for name, value in loads.items() if value is not None]
        if len(given) != 1:
            remedy = "give each cell exactly one of concurrency, rate and trace"
            raise InputError("loads", ", ".join(given) or None, remedy)
        return self

    @property
    def fleet(self) -> Fleet:
        """The replicas and their router. Raises InputError."""
        return Fleet(self.replicas, self.router)

    @property
    def load(self) -> tuple[str, float] | None:
        """The load as WorkloadConfig.build takes it; None for a trace."""
        if self.concurrency is not None:
            return "concurrency", float(self.concurrency)
        return None if self.rate is None else ("rate", self.rate)

    def workload(self) -> WorkloadConfig:
        """Return the settings of the workload."""
        given = {name: getattr(self, name) for name in OF_WORKLOAD if name in self.model_fields_set}
        return WorkloadConfig(**given)

    def built(self) -> Architecture:
        """Return the architecture with its changes. Raises InputError."""
        names = ("batch_limit", "prefill_limit", "decode_limit", "workers", "slots", "permits", "hybrid")
        changes = {name: getattr(self, name) for name in names}
        return _architecture(json.dumps(self.architecture, default=str), draft_length=self.k, **changes)


@lru_cache(maxsize=1024)
def _architecture(
    base: str, prefill_limit: int | None, decode_limit: int | None, **changes: Any
) -> Architecture:  # fmt: skip
    layout = layout_of(json.loads(base))
    if layout.loads or layout.workload:
        remedy = "the loads of a sweep are axes; give the table and its load together in a [[zip]]"
        raise InputError("architecture", layout.architecture.name, remedy)
    built = changed(layout.architecture, **changes)
    limits = dict.fromkeys((Step.DRAFT, Step.VERIFY, Step.DRAFT_VERIFY), decode_limit) | {Step.PREFILL: prefill_limit}
    return built.with_batch_limits({step: limit for step, limit in limits.items() if limit is not None})


@dataclass(frozen=True)
class Cell:
    """A cell: its settings, and the values that the axes gave to some of them."""

    settings: CellSettings
    axes: dict[str, Any]

    @cached_property
    def architecture(self) -> Architecture:
        return self.settings.built()

    @cached_property
    def digest(self) -> str:
        """Digest of everything that determines its simulations, apart from the prediction's settings and the seed."""
        settings, acceptance = self.settings, self.settings.acceptance
        return fingerprint(
            {
                "architecture": self.architecture.to_dict(),
                **settings.fleet.describe(),
                "workload": settings.workload().model_dump(),
                "load": settings.load,
                "acceptance": None if acceptance is None else parse_acceptance(acceptance).describe(),
                "trace": None if settings.trace is None else digest_of(settings.trace),
            }
        )

    @property
    def requests(self) -> int:
        """The number of requests of each of its simulations."""
        config, clients = self.settings.workload(), self.settings.concurrency or 0
        if config.trace is not None:
            return len(workload_of(config, None, 0).requests)
        return max(config.requests or DEFAULT_REQUESTS, config.requests_per_client * clients)

    @cached_property
    def work(self) -> float:
        """Expected work of a simulation: its output tokens, approximately."""
        config = self.settings.workload()
        if config.trace is not None:
            return float(sum(request.max_tokens for request in workload_of(config, None, 0).requests))
        tokens = parse_lengths("output_tokens", config.output_tokens).tokens(np.array([0.25, 0.5, 0.75]))
        return float(self.requests * tokens.mean())

    def columns(self, acceptance: AcceptanceChoice) -> dict[str, Any]:
        """Return every setting, as it was resolved, by the name that it has in a configuration.

        acceptance: of the cells whose settings name none.
        """
        architecture = self.architecture
        limits = {step: limit for lane in architecture.lanes for step, limit in lane.steps.items()}
        resolved = {
            "architecture": architecture.name,
            "k": draft_length_label(architecture),
            "batch_limit": ",".join(f"{step}={limit}" for step, limit in limits.items()),
            "prefill_limit": limits.pop(Step.PREFILL),
            "decode_limit": max(limits.values()),
            "workers": max(lane.workers for lane in architecture.lanes),
            "slots": architecture.slots,
            "permits": min(map(architecture.permits_on, architecture.devices)),
            "hybrid": architecture.hybrid_at_or_below,
            "acceptance": self.settings.acceptance or acceptance.kind,
            "requests": self.requests,
            "rate_steps": ",".join(f"{factor:g}" for factor in self.settings.rate_steps or ()) or None,
        }
        return {**self.settings.model_dump(), **resolved}

    def __str__(self) -> str:
        named = {**self.axes, "architecture": self.architecture.name}
        return ", ".join(f"{name} {value}" for name, value in named.items())


def cell_of(settings: CellSettings, axes: dict[str, Any]) -> Cell:
    """Return a cell, after checking that its settings go together. Raises InputError."""
    if settings.acceptance is not None:
        parse_acceptance(settings.acceptance)
    cell = Cell(settings, axes)
    settings.fleet.check(cell.architecture)
    if settings.trace is not None:
        workload_of(settings.workload(), None, 0)
    else:
        _check_workload(settings.workload(), settings.load)
    return cell


@lru_cache(maxsize=1024)
def _check_workload(config: WorkloadConfig, load: tuple[str, float] | None) -> None:
    """Raise InputError for a workload that cannot be built. One request, of each client, shows it too."""
    fewest = (
        {"requests": 1} if load is None or load[0] != "concurrency" else {"requests": 1, "requests_per_client": 1}
    )
    config.model_copy(update=fewest).build(load, 0)


@lru_cache(maxsize=8)
def workload_of(config: WorkloadConfig, load: tuple[str, float] | None, seed: int) -> Workload:
    """Return the workload under a load. Cells that share its settings meet the same one. Raises InputError."""
    return config.build(load, seed)


@lru_cache(maxsize=64)
def digest_of(path: str) -> str:
    """Return a digest of a file's content. Raises InputError."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError("trace", path, f"cannot read the file ({error.strerror}); give another file") from error
