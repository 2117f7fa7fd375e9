"""Numbers for people: the summary of a run and the table of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from engines.policy.request import Status
from engines.record.metrics import summary
from engines.record.run import Run
from engines.storage.files import replaced
from experiments.compare.compare import Comparison
from experiments.program.progress import AS_IT_IS
from experiments.runner.cells import CELL_COLUMNS, Cell, cell_of

WIDTH = 110


def results_console() -> Console:
    """Standard output; in a file or pipe wide enough for the tables."""
    console = Console(**AS_IT_IS)
    return console if console.is_terminal else Console(**AS_IT_IS, width=WIDTH)


def print_summary(run: Run, folder: Path) -> None:
    """A few lines on standard output: what ran, how fast, where the record is."""
    results_console().print(summary_table(run))
    print(f"record: {folder}")


def summary_table(run: Run) -> Table:
    """The run in six lines."""
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
    return table


def comparison_report(comparison: Comparison) -> RenderableType:
    """The grid, one row a cell, the means below it, and the pairs by request where runs were replayed."""
    grid = comparison.grid()
    table = _table("simulated against live: error = (simulated - live) / live")
    table.caption = "spread: (largest - smallest) / mean over the live repeats of the cell"
    headings = [
        "live\ntokens/s", "simulated\ntokens/s", "tokens/s\nerror", "tokens/s\nspread", "latency\nmedian",
        "latency\nP95", "latency\nspread", "TTFT\nmean", "TPOT\nmean",
    ]  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    columns = [
        "throughput_error", "throughput_spread", "latency_median_error", "latency_p95_error", "latency_spread",
        "ttft_mean_error", "tpot_mean_error",
    ]  # fmt: skip
    marks = _marks([*grid["differs"], *comparison.paired["differs"]])
    previous = None
    for row in grid.to_dict("records"):
        cell = Cell(*(row[column] for column in CELL_COLUMNS))
        if previous not in (None, cell.architecture):
            table.add_section()
        previous = cell.architecture
        table.add_row(
            *_cell(cell, grid, marks.get(row["differs"], "")),
            f"{row['throughput_live']:.1f}", f"{row['throughput_simulated']:.1f}",
            *(_percent(row[name], signed="error" in name) for name in columns),
        )  # fmt: skip
    table.add_section()
    means = grid[columns].abs().mean()
    table.add_row("mean |...|", "", "", "", *(_percent(means[name]) for name in columns), style="bold")
    parts: list[RenderableType] = [table]
    if not comparison.paired.empty:
        parts.append(_paired_table(comparison, grid, marks))
    parts += [Text(f"{mark} simulated otherwise than live: {differs}") for differs, mark in marks.items()]
    parts += [Text(f"not compared: {cell}") for cell in comparison.unmatched]
    parts.append(Text(verdict(comparison)))
    return Group(*parts)


def verdict(comparison: Comparison) -> str:
    """The one sentence to remember."""
    spread = comparison.grid()["throughput_spread"].mean()
    against = f"; the live repeats themselves spread {spread:.1%} on average" if not math.isnan(spread) else ""
    cells = len(comparison.grid())
    error = f"mean absolute throughput error over {cells} cells: {comparison.throughput_error:.1%}{against}"
    others = int((comparison.grid()["differs"] != "").sum())
    return f"{error}; {others} of them simulated with other settings than live" if others else error


def write_report(comparison: Comparison, path: Path) -> Path:
    """The report as plain text."""
    with replaced(path) as beside, beside.open("w", encoding="utf-8") as file:
        Console(**AS_IT_IS, file=file, width=WIDTH).print(comparison_report(comparison))
    return path


def _marks(differs: Iterable[str]) -> dict[str, str]:
    """A mark for each combination of settings that differ somewhere."""
    return {names: f"({i})" for i, names in enumerate(dict.fromkeys(filter(None, differs)), 1)}


def _paired_table(comparison: Comparison, grid: pd.DataFrame, marks: Mapping[str, str]) -> Table:
    table = _table("request by request, where the simulation replays the live arrivals")
    table.caption = "means over the cell's replayed runs; MAPE: mean of |simulated - live| / live; r: Pearson"
    for quantity in ("latency", "TTFT"):
        for heading in ("bias", "MAPE", "r"):
            table.add_column(f"{quantity}\n{heading}", justify="right")
    for _, rows in comparison.paired.groupby([*CELL_COLUMNS, "differs"]):
        cell = Cell(*rows[CELL_COLUMNS].iloc[0])
        means = rows.groupby("quantity")[["bias", "mape", "pearson_r"]].mean().to_dict("index")
        shown = []
        for quantity in ("latency_s", "ttft_s"):
            bias, mape, r = means[quantity].values()
            shown += [_percent(bias, signed=True), _percent(mape), "-" if math.isnan(r) else f"{r:.2f}"]
        table.add_row(*_cell(cell, grid, marks.get(rows["differs"].iloc[0], "")), *shown)
    return table


def _table(title: str) -> Table:
    """A table whose rows begin with `_cell`; narrow enough for 100 columns."""
    table = Table(
        title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left",
        title_style="bold", caption_style="dim",
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    table.add_column("load", justify="right", no_wrap=True)
    return table


def _cell(cell: Cell, grid: pd.DataFrame, mark: str) -> tuple[str, str]:
    """Architecture and load in short; the draft length is named where cells differ in it, and the mark of what the
    two sides differ in follows."""
    name = cell.architecture if grid["draft_length"].nunique() == 1 else f"{cell.architecture}, k {cell.draft_length}"
    name = f"{name} {mark}" if mark else name
    unit = {"concurrency": "clients" if cell.level != 1 else "client", "rate": "/s", "trace": "requests"}[cell.load]
    return name, f"{cell.level:g} {unit}"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float, signed: bool = False) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:+.1%}" if signed else f"{value:.1%}"


def grid_table(runs: Sequence[Run]) -> Table:
    """One row a run: load, throughput, latency, TTFT and TPOT."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("architecture")
    for heading in ("load", "k", "tokens/s", "latency\nmedian (s)", "latency\nP95 (s)", "TTFT\nmean (s)"):
        table.add_column(heading, justify="right")
    table.add_column("TPOT\nmean (ms)", justify="right")
    for run in sorted(runs, key=cell_of):
        cell, numbers = cell_of(run), summary(run)
        table.add_row(
            cell.architecture, f"{cell.load} {cell.level:g}", cell.draft_length,
            f"{numbers['throughput_tokens_per_s']:.1f}", f"{numbers['latency_s.median']:.3f}",
            f"{numbers['latency_s.p95']:.3f}", f"{numbers['ttft_s.mean']:.3f}", f"{1e3 * numbers['tpot_s.mean']:.2f}",
        )  # fmt: skip
    return table
