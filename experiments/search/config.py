"""The configuration of a search: the load, the objective, and the space of candidates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from engines.errors import MOST_WHOLE, InputError, require_name, require_whole
from engines.storage.reading import read_toml
from engines.storage.validation import Count, Positive, Settings, Whole, checked
from experiments.runner.config import WorkloadConfig, config_file
from experiments.sweep.axes import Draw
from experiments.sweep.cells import SLO, Cell, CellSettings, cell_of
from experiments.sweep.config import SCHEMA_VERSION, as_setting, rebased

CONFIGS = Path(__file__).parent / "configs"
OTHER_SEEDS = 1_000_000
"""Finalists are simulated with the seeds from here on, after the search's own seed."""
MOST_SEED = MOST_WHOLE - 2 * OTHER_SEEDS
LOADS = ("concurrency", "rate", "trace", "requests", *SLO)
"""Settings that all candidates share, so that they are compared for the same load and objective."""


def _name(value: str) -> str:
    require_name("name", value)
    return value


class Search(Settings):
    """The whole file.

    concurrency: a closed loop; the highest throughput that meets the SLO is searched, if there is one. rates: lowest
    and highest rate of an open loop (requests per second); the highest rate that meets the SLO is searched. An SLO is
    met if at least slo_share of all requests finish within slo_ttft_s and slo_tpot_s. space: a Draw for every setting
    to choose. trials: candidates, each simulated `repeats` times (at each rate). finalists: how many of the best are
    simulated again, final_repeats times with other seeds. rate_steps: the rates are divided into 2 ** rate_steps
    steps of equal ratio. The rest: see experiments.sweep.config.Sweep.
    """

    model_config = ConfigDict(title="config")

    name: Annotated[str, AfterValidator(_name)] = "search"
    pair: str | None = None
    profile: str
    architectures: Annotated[list[str | dict[str, Any]], Field(min_length=1)]
    concurrency: Count | None = None
    rates: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    rate_steps: Annotated[int, Field(ge=1, le=10)] = 6
    acceptance: str | None = None
    slo_ttft_s: Positive | None = None
    slo_tpot_s: Positive | None = None
    slo_share: Annotated[float, Field(gt=0, le=1)] = 0.95
    trials: Count = 64
    repeats: Annotated[int, Field(ge=1, le=OTHER_SEEDS)] = 2
    finalists: Count = 5
    final_repeats: Annotated[int, Field(ge=2, le=OTHER_SEEDS)] = 10
    seed: Whole = 0
    max_context: Count | None = None
    extrapolate: bool = True
    workload: WorkloadConfig = WorkloadConfig()
    space: dict[str, Draw] = Field(default={})

    @model_validator(mode="after")
    def _one_load(self) -> Search:
        if (self.concurrency is None) == (self.rates is None):
            raise InputError("loads", None, "give one of concurrency and rates")
        if self.workload.trace is not None:
            raise InputError(
                "workload.trace", self.workload.trace, "a search has a concurrency or rates; leave it out"
            )
        if self.rates is not None:
            if not self.rates[0] < self.rates[1]:
                raise InputError("rates", self.rates, "give the lowest and the highest")
            if not self.has_slo:
                raise InputError("slo_ttft_s, slo_tpot_s", None, "the highest rate needs an SLO; give one of them")
        require_whole("seed", self.seed, 0, MOST_SEED)
        for name in self.space:
            if name not in CellSettings.model_fields or name in (*LOADS, "architecture"):
                known = [n for n in CellSettings.model_fields if n not in (*LOADS, "architecture")]
                raise InputError("space", name, f"it cannot be searched; use {', '.join(known)}")
        return self

    @staticmethod
    def load(path: str | Path, **overrides: Any) -> Search:
        """Read and check a configuration, given by its path or the name of a built-in one. Raises InputError.

        Relative paths in it start at its folder. overrides: settings to replace.
        """
        path = config_file(path, CONFIGS)
        values = rebased(path.parent.resolve(), read_toml("config", path))
        if values.get("schema_version") == SCHEMA_VERSION:  # the file of a result folder
            del values["schema_version"]
        return Search.from_dict({**values, **overrides})

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Search:
        """Check plain values, and the first candidate of each architecture. Raises InputError."""
        search = checked(Search, values)
        lowest = {name: draw.values(np.array([0.0]))[0] for name, draw in search.space.items()}
        for architecture in search.named():
            search.cell({"architecture": architecture, **lowest}, 0)
        return search

    @property
    def has_slo(self) -> bool:
        return self.slo_ttft_s is not None or self.slo_tpot_s is not None

    def rate_grid(self) -> list[float]:
        """Return the rates that are tried, in requests per second; empty for a closed loop."""
        if self.rates is None:
            return []
        lowest, highest = self.rates
        rates: list[float] = np.geomspace(lowest, highest, 2**self.rate_steps + 1).tolist()
        return [float(f"{rate:.4g}") for rate in rates]

    def named(self) -> dict[str, str | dict[str, Any]]:
        """Return the architectures by name. Raises InputError if two have the same."""
        found: dict[str, str | dict[str, Any]] = {}
        for value in self.architectures:
            name = str(value if isinstance(value, str) else value.get("name", value.get("base")))
            if name in found:
                raise InputError("architectures", name, "two of them have this name; give each table a name")
            found[name] = value
        return found

    def cell(self, chosen: Mapping[str, Any], step: int) -> Cell:
        """Return a candidate's cell at a step of the rate grid (any, for a closed loop). Raises InputError.

        chosen: `architecture` by name, and a value for every setting of the space.
        """
        shared: dict[str, Any] = {
            **self.workload.model_dump(exclude_unset=True),
            **{name: getattr(self, name) for name in ("acceptance", *SLO) if getattr(self, name) is not None},
            **({"rate": self.rate_grid()[step]} if self.rates else {"concurrency": self.concurrency}),
        }
        values = {name: as_setting(name, value) for name, value in {**shared, **chosen}.items()}
        values["architecture"] = self.named()[values["architecture"]]
        return cell_of(checked(CellSettings, values, "candidate"), dict(chosen))

    def resolved(self) -> dict[str, Any]:
        """Return plain values that from_dict reads back."""
        return self.model_dump(exclude_none=True)
