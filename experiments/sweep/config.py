"""The configuration of a sweep: the settings that all cells share, the axes, and how often each cell is simulated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from engines.errors import InputError, require_name, require_whole
from engines.record.masks import SUFFIX as MASKS
from engines.storage.reading import read_toml
from engines.storage.validation import Count, Positive, Settings, Whole, checked
from experiments.runner.config import WorkloadConfig, config_file
from experiments.sweep.axes import Grid, Random, Zip, combined
from experiments.sweep.cells import AS_TEXT, SLO, Cell, CellSettings, cell_of

CONFIGS = Path(__file__).parent / "configs"
SCHEMA_VERSION = 1
"""Of the result folder. Another version of the metrics is another version of it, and is simulated again."""


def _name(value: str) -> str:
    require_name("name", value)
    return value


class Sweep(Settings):
    """The whole file.

    architectures, concurrencies, rates, k: axes of the grid, written as in an experiment. grid, zip, random: more
    axes, by the names of CellSettings; a cell for every combination of the grid, each zip and the random axes.
    workload, acceptance, slo_ttft_s, slo_tpot_s: for the cells without such an axis. repeats: simulations per cell;
    repeat r uses seed + r - 1 in every cell, so that all cells meet the same arrivals, lengths and acceptance.
    extrapolate: simulate what lies beyond the profile too, and mark it. confidence: of the intervals over repeats.
    """

    model_config = ConfigDict(title="config")

    name: Annotated[str, AfterValidator(_name)] = "sweep"
    pair: str | None = None
    profile: str
    architectures: list[str | dict[str, Any]] = Field(default=[])
    concurrencies: list[Count] = Field(default=[])
    rates: list[Positive] = Field(default=[])
    k: list[str] = Field(default=[])
    repeats: Count = 3
    seed: Whole = 0
    max_context: Count | None = None
    acceptance: str | None = None
    slo_ttft_s: Positive | None = None
    slo_tpot_s: Positive | None = None
    extrapolate: bool = True
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    workload: WorkloadConfig = WorkloadConfig()
    grid: Grid = Field(default={})
    zip: list[Zip] = Field(default=[])
    random: Random | None = None

    @model_validator(mode="after")
    def _seeds_fit(self) -> Sweep:
        require_whole("seed + repeats", self.seed + self.repeats, 0)
        return self

    @staticmethod
    def load(path: str | Path, **overrides: Any) -> Sweep:
        """Read and check a configuration, given by its path or the name of a built-in one (`limits`).

        Relative paths in it start at its folder. overrides: settings to replace. Raises InputError.
        """
        path = config_file(path, CONFIGS)
        values = rebased(path.parent.resolve(), read_toml("config", path))
        if values.get("schema_version") == SCHEMA_VERSION:  # the file of a result folder
            del values["schema_version"]
        return Sweep.from_dict({**values, **overrides})

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Sweep:
        """Check plain values, including the cells. Raises InputError naming the first wrong field."""
        sweep = checked(Sweep, values)
        sweep.cells()
        return sweep

    def resolved(self) -> dict[str, Any]:
        """Return plain values that from_dict reads back."""
        return self.model_dump(exclude_none=True)

    def axes(self) -> tuple[dict[str, list[Any]], list[dict[str, list[Any]]]]:
        """Return the axes of the grid, and the groups of axes that go together. Raises InputError."""
        plural: dict[str, list[Any]] = {
            "architecture": self.architectures, "concurrency": self.concurrencies, "rate": self.rates, "k": self.k,
        }  # fmt: skip
        given = {name: values for name, values in plural.items() if values}
        for name in self.grid:
            if name in given:
                raise InputError(f"grid.{name}", self.grid[name], "the sweep lists its values already; give one list")
        together = [*self.zip, *([self.random.axes()] if self.random is not None else [])]
        grid = given | self.grid
        for name in {name for group in (grid, *together) for name in group}:
            if name not in CellSettings.model_fields:
                remedy = f"no such axis; use {', '.join(CellSettings.model_fields)}"
                raise InputError("axes", name, remedy)
        return grid, together

    def varying(self) -> list[str]:
        """Return the names of the axes with more than one value."""
        grid, together = self.axes()
        groups = [{name: values} for name, values in grid.items()] + together
        return [n for group in groups for n, values in group.items() if any(v != values[0] for v in values)]

    def cells(self) -> list[Cell]:
        """Return all cells, the first axis changing slowest. Raises InputError."""
        shared: dict[str, Any] = {
            **self.workload.model_dump(exclude_unset=True),
            **{name: getattr(self, name) for name in ("acceptance", *SLO) if getattr(self, name) is not None},
        }
        cells = []
        names: dict[str, Any] = {}
        for axes in combined(*self.axes()):
            values = {name: as_setting(name, value) for name, value in {**shared, **axes}.items()}
            cell = cell_of(checked(CellSettings, values, "cell"), axes)
            name = cell.architecture.name
            if names.setdefault(name, cell.settings.architecture) != cell.settings.architecture:
                raise InputError("architectures", name, "two of them have this name; give each table a name")
            cells.append(cell)
        if not cells:
            raise InputError("cells", 0, "give the sweep an axis")
        return cells


def as_setting(name: str, value: Any) -> Any:
    """Return an axis's value as the setting takes it: some settings are texts, and an axis may list numbers."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.15g}" if name in AS_TEXT and number else value


def rebased(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with relative paths resolved against an absolute folder."""

    def rebase(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rebase(key if key != "choice" else name, item) for key, item in value.items()}
        if isinstance(value, list):
            return [rebase(name, item) for item in value]
        architecture = name in ("architecture", "architectures", "base")
        is_path = name in ("profile", "trace") or (architecture and str(value).endswith(".toml"))
        is_path |= name == "acceptance" and str(value).endswith(MASKS)
        return str(folder / value) if isinstance(value, str) and is_path else value

    return {name: rebase(name, value) for name, value in values.items()}
