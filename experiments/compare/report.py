"""Readable reports: the summary of a run and the tables of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from engines.policy.request import Status
from engines.record.metrics import summary
from engines.record.run import Run
from engines.storage.files import replaced
from experiments.compare.compare import Comparison, spread
from experiments.program.progress import AS_IT_IS
from experiments.runner.beyond import beyond_text
from experiments.runner.cells import CELL_COLUMNS, Cell, cell_of

WIDTH = 110
WIDE = 140  # of the tables with spreads beside the errors
VERDICT = {
    "throughput": "throughput", "ttft_mean": "mean TTFT", "tpot_mean": "mean TPOT", "latency_mean": "mean latency",
    "latency_p95": "P95 latency",
}  # fmt: skip
THROUGHPUT_TABLE = (
    "throughput and TPOT, simulated against live: error = (simulated - live) / live",
    {
        "throughput_live": "live\ntokens/s", "throughput_simulated": "simulated\ntokens/s",
        "throughput_error": "tokens/s\nerror", "throughput_live_spread": "live\nspread",
        "throughput_simulated_spread": "simulated\nspread", "tpot_mean_error": "mean TPOT\nerror",
        "tpot_mean_live_spread": "live\nspread",
    },
)  # fmt: skip
LATENCY_TABLE = (
    "TTFT and latency, simulated against live",
    {
        "ttft_mean_error": "mean TTFT\nerror", "ttft_mean_live_spread": "live\nspread",
        "latency_mean_error": "latency\nmean", "latency_median_error": "latency\nmedian",
        "latency_p95_error": "latency\nP95", "latency_p95_live_spread": "P95, live\nspread",
    },
)  # fmt: skip
STEADY = "steady_throughput_tokens_per_s"
CELL_METRICS = {
    "throughput_tokens_per_s": ("tokens/s", 1.0), STEADY: ("steady\ntokens/s", 1.0),
    "ttft_s.mean": ("TTFT mean\n(ms)", 1e3), "ttft_s.p95": ("TTFT P95\n(ms)", 1e3),
    "tpot_s.mean": ("TPOT mean\n(ms)", 1e3), "latency_s.median": ("latency\nmedian (ms)", 1e3),
    "latency_s.p95": ("latency\nP95 (ms)", 1e3),
}  # fmt: skip
"""Headings of the table of cells, and the factors for their units."""


def results_console(width: int = WIDTH) -> Console:
    """Return a console on standard output that is wide enough for the tables, even in a file or pipe."""
    console = Console(**AS_IT_IS)
    return console if console.is_terminal else Console(**AS_IT_IS, width=width)


def print_summary(run: Run, folder: Path) -> None:
    """Print what ran, how fast it was and where the record is."""
    results_console().print(summary_table(run))
    print(f"record: {folder}")


def summary_table(run: Run) -> Table:
    """Return a summary of the run in six rows."""
    numbers = summary(run)
    statuses = run.requests["status"].value_counts()
    others = [f"{count} {status}" for status, count in statuses.items() if status != Status.FINISHED]
    finished = f"{len(run.finished)} of {len(run.requests)} requests in {run.duration_s:.2f} s"
    title = f"{cell_of(run)} ({run.info.get('kind', 'run')})"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_header=False, title_justify="left", title_style="bold")
    table.add_row("finished", ", ".join([finished, *others]))
    table.add_row(
        "throughput",
        f"{_number(numbers['throughput_tokens_per_s'], 1)} tokens/s, "
        f"{_number(numbers['throughput_requests_per_s'], 2)} requests/s",
    )
    for name, label in (("latency_s", "latency"), ("ttft_s", "TTFT"), ("tpot_s", "TPOT")):
        values = [f"{stat} {_number(1e3 * numbers[f'{name}.{stat}'], 1)}" for stat in ("mean", "median", "p95")]
        table.add_row(f"{label} (ms)", ", ".join(values))
    table.add_row(
        "acceptance",
        f"rate {_number(numbers['acceptance_rate'], 2)}, "
        f"{_number(numbers['acceptance_length'], 2)} tokens per verify",
    )
    if "beyond_profile" in run.info:
        table.add_row("beyond the profile", beyond_text(run.info["beyond_profile"], len(run.requests)))
    return table


def comparison_report(comparison: Comparison) -> RenderableType:
    """Return two tables with one row per cell and the mean absolute errors below.

    If live runs were replayed, a third table compares them request by request.
    """
    parts: list[RenderableType] = [*comparison_tables(comparison)]
    marks = _marks(comparison)
    parts += [Text(f"{mark} simulated with other settings than live: {differs}") for differs, mark in marks.items()]
    parts += [Text(f"not compared: {cell}") for cell in comparison.unmatched]
    parts.append(Text(verdict(comparison)))
    return Group(*parts)


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return the tables of `comparison_report`."""
    grid, marks = comparison.grid(), _marks(comparison)
    tables = [_errors(*texts, grid, marks) for texts in (THROUGHPUT_TABLE, LATENCY_TABLE)]
    return tables if comparison.paired.empty else [*tables, _paired_table(comparison, grid, marks)]


def verdict(comparison: Comparison) -> str:
    """Return the mean absolute errors over the cells, with the mean live spreads, as one sentence."""
    grid = comparison.grid()
    errors = []
    for name, label in VERDICT.items():
        spread = grid[f"{name}_live_spread"].mean()
        against = "" if math.isnan(spread) else f" (live spread {spread:.1%})"
        errors.append(f"{label} {percent(grid[f'{name}_error'].abs().mean())}{against}")
    text = f"mean absolute errors over {len(grid)} cells: {', '.join(errors)}"
    others = int((grid["differs"] != "").sum())
    return f"{text}; {others} of them simulated with other settings than live" if others else text


def write_report(comparison: Comparison, path: Path, *more: RenderableType) -> Path:
    """Write the report, and what follows it, as plain text."""
    with replaced(path) as beside, beside.open("w", encoding="utf-8") as file:
        Console(**AS_IT_IS, file=file, width=WIDTH).print(comparison_report(comparison))
        Console(**AS_IT_IS, file=file, width=WIDE).print(*more)
    return path


def _errors(title: str, headings: Mapping[str, str], grid: pd.DataFrame, marks: Mapping[str, str]) -> Table:
    table = cells_table(title)
    table.caption = "spread: (largest - smallest) / |mean| over the repeats of the cell"
    for heading in headings.values():
        table.add_column(heading, justify="right")
    previous = None
    for row in grid.to_dict("records"):
        cell = Cell(*(row[column] for column in CELL_COLUMNS))
        if previous not in (None, cell.architecture):
            table.add_section()
        previous = cell.architecture
        table.add_row(
            *cell_columns(cell, grid, marks.get(row["differs"], "")), *(_shown(name, row[name]) for name in headings)
        )
    table.add_section()
    means = {name: grid[name].abs().mean() for name in headings if name.endswith(("error", "spread"))}
    table.add_row(
        "mean |...|", "", *(percent(means.get(name, math.nan), blank="") for name in headings), style="bold"
    )
    return table


def _shown(name: str, value: float) -> str:
    if name.endswith(("error", "spread")):
        return percent(value, signed=name.endswith("error"))
    return f"{value:.1f}"


def _marks(comparison: Comparison) -> dict[str, str]:
    """Return a mark for each combination of differing settings."""
    differs = [*comparison.grid()["differs"], *comparison.paired["differs"]]
    return {names: f"({i})" for i, names in enumerate(dict.fromkeys(filter(None, differs)), 1)}


def _paired_table(comparison: Comparison, grid: pd.DataFrame, marks: Mapping[str, str]) -> Table:
    table = cells_table("replays and their live runs, request by request")
    table.caption = "means over the replays of the cell; MAPE: mean of |simulated - live| / live; r: Pearson"
    for quantity in ("latency", "TTFT"):
        for heading in ("bias", "MAPE", "r"):
            table.add_column(f"{quantity}\n{heading}", justify="right")
    for _, rows in comparison.paired.groupby([*CELL_COLUMNS, "differs"]):
        cell = Cell(*rows[CELL_COLUMNS].iloc[0])
        means = rows.groupby("quantity")[["bias", "mape", "pearson_r"]].mean().to_dict("index")
        shown = []
        for quantity in ("latency_s", "ttft_s"):
            bias, mape, r = means[quantity].values()
            shown += [percent(bias, signed=True), percent(mape), "-" if math.isnan(r) else f"{r:.2f}"]
        table.add_row(*cell_columns(cell, grid, marks.get(rows["differs"].iloc[0], "")), *shown)
    return table


def cells_table(title: str, first: str = "", second: str = "load") -> Table:
    """Return a table whose rows begin with `cell_columns`, or with other names."""
    table = Table(
        title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left",
        title_style="bold", caption_style="dim",
    )  # fmt: skip
    table.add_column(first, no_wrap=True)
    table.add_column(second, justify="right" if second == "load" else "left", no_wrap=True)
    return table


def cell_columns(cell: Cell, grid: pd.DataFrame, mark: str = "") -> tuple[str, str]:
    """Return short names of architecture and load.

    The draft length is included if the cells differ in it, followed by the mark of the settings that differ.
    """
    name = cell.architecture if grid["draft_length"].nunique() == 1 else f"{cell.architecture}, k {cell.draft_length}"
    name = f"{name} {mark}" if mark else name
    unit = {"concurrency": "clients" if cell.level != 1 else "client", "rate": "/s", "trace": "requests"}[cell.load]
    return name, f"{cell.level:g} {unit}"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float, signed: bool = False, blank: str = "-") -> str:
    if math.isnan(value):
        return blank
    return f"{value:+.1%}" if signed else f"{value:.1%}"


def grid_table(runs: Sequence[Run]) -> Table:
    """Return one row per cell and kind: means over the repeats, with their spread in brackets."""
    return cells_report(measured_rows(runs))


def measured_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per run: its kind, its cell (CELL_COLUMNS), outputs `checked` and `equal`, and its metrics."""
    rows = [
        {"kind": str(run.info.get("kind", "run")), **cell_of(run)._asdict(), **checked_outputs(run), **summary(run)}
        for run in sorted(runs, key=cell_of)
    ]
    return pd.DataFrame(rows)


def checked_outputs(run: Run) -> dict[str, int]:
    """Return how many outputs were checked and how many equal the closed form; nothing if none were."""
    exactness = run.info.get("exactness", {})
    return {name: exactness[name] for name in ("checked", "equal") if exactness}


def cells_report(rows: pd.DataFrame) -> Table:
    """Return one row per cell and kind, of rows as `measured_rows` and the table of an experiment have them."""
    rows = rows.reindex(columns=list(dict.fromkeys([*rows, *CELL_METRICS, "checked", "equal"])))
    kinds, checked = rows["kind"].nunique(), bool(rows["checked"].notna().any())
    table = cells_table("means over the repeats of each cell (spread: (largest - smallest) / |mean|)")
    table.padding = (0, 0)  # so that each cell has one line in WIDTH columns
    for heading, _ in CELL_METRICS.values():
        table.add_column(heading, justify="right")
    if checked:
        table.add_column("exact\noutputs", justify="right")
    never_full = False
    groups: Iterable[tuple[Any, pd.DataFrame]] = rows.groupby(["kind", *CELL_COLUMNS])
    for (kind, *values), repeats in groups:
        metrics = repeats[list(CELL_METRICS)].astype(float)
        means, spreads = metrics.mean(), spread(metrics)
        never_full |= math.isnan(means[STEADY])
        row = [_with_spread(means[name] * scale, spreads[name]) for name, (_, scale) in CELL_METRICS.items()]
        name, load = cell_columns(Cell(*values), rows)
        table.add_row(f"{name}, {kind}" if kinds > 1 else name, load, *row, *[_exact(repeats)] * checked)
    if never_full:
        table.caption = "steady: - if the clients were never all served at once, or the load is an open loop"
    return table


def _with_spread(value: float, spread_: float) -> str:
    if math.isnan(value):
        return "-"
    digits = max(0, 3 - len(f"{abs(value):.0f}")) if abs(value) >= 1 else 3
    return f"{value:.{digits}f}" + ("" if math.isnan(spread_) else f" ({spread_:.0%})")


def _exact(repeats: pd.DataFrame) -> str:
    """Return how many of the checked outputs equal the closed form."""
    if not repeats["checked"].notna().any():
        return "-"
    return f"{repeats['equal'].sum():.0f}/{repeats['checked'].sum():.0f}"
