"""Readable reports of fidelity: errors of replays and blind simulations, tolerances, decisions and explanations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engines.policy.architecture import Segment
from experiments.compare.comparable import BLIND, REPLAY, SIMULATED
from experiments.compare.decisions import Decision
from experiments.compare.exchange import BATCHES, CONTENTION, HOST, PADDING, SOLO
from experiments.compare.explain import Explanation
from experiments.compare.fidelity import CORRELATION, MAPE, METRICS, Fidelity
from experiments.compare.report import cell_columns, cells_table, percent
from experiments.runner.cells import CELL_COLUMNS, Cell, cell_of

TITLES = {
    REPLAY: "replay: arrivals or clients, lengths and acceptance of the live run; only the time is predicted",
    BLIND: "blind: the description of the workload, and fitted acceptance",
    SIMULATED: "simulated",
}
HEADINGS = {"throughput": "tokens/s"}
SEGMENTS = {
    Segment.PREFILL_DRAFT: "prefill\ndraft", Segment.PREFILL_TARGET: "prefill\ntarget", Segment.DRAFT: "draft",
    Segment.VERIFY: "verify",
}  # fmt: skip


def fidelity_report(found: Fidelity) -> RenderableType:
    """Return `fidelity_tables`, one below the other."""
    return Group(*fidelity_tables(found))


def fidelity_tables(found: Fidelity) -> list[Table]:
    """Return a table per mode with one row per cell, and one of the mean absolute errors and the worst."""
    return [*(_cells(mode, cells) for mode, cells in found.cells.items()), _totals(found)]


def _cells(mode: str, cells: pd.DataFrame) -> Table:
    table = cells_table(f"{TITLES[mode]}; error, % (spread of the live repeats)")
    metrics = [name for name in (*METRICS, MAPE, CORRELATION) if name in cells]
    for name in metrics:
        table.add_column(HEADINGS.get(name, name), justify="right", no_wrap=True)
    for row in cells.to_dict("records"):
        cell = Cell(*(row[column] for column in CELL_COLUMNS))
        shown = [_error(row[name], row.get(f"{name}_spread", math.nan), name) for name in metrics]
        table.add_row(*cell_columns(cell, cells), *shown)
    return table


def _error(value: float, spread: float, name: str) -> str:
    if math.isnan(value):
        return "-"
    if name in (MAPE, CORRELATION):
        return f"{100 * value:.1f}" if name == MAPE else f"{value:.3f}"
    return f"{100 * value:+.1f}" + ("" if math.isnan(spread) else f" ({100 * spread:.1f})")


def _totals(found: Fidelity) -> Table:
    table = cells_table(
        "over all cells: mean |error|, % (worst); of r: mean (smallest)", first="mode", second="cells"
    )
    totals = found.totals()
    metrics = [name for name in (*METRICS, MAPE, CORRELATION) if (totals["metric"] == name).any()]
    for name in metrics:
        table.add_column(HEADINGS.get(name, name), justify="right", no_wrap=True)
    for mode, rows in totals.groupby("mode", sort=False):
        known = {metric: (mean, worst) for _, metric, mean, worst, _ in rows.itertuples(index=False)}
        shown = [_total(name, *known[name]) if name in known else "-" for name in metrics]
        table.add_row(str(mode), str(len(found.cells[str(mode)])), *shown, style="bold")
    return table


def _total(name: str, mean: float, worst: float) -> str:
    return f"{mean:.3f} ({worst:.2f})" if name == CORRELATION else f"{100 * mean:.1f} ({100 * worst:.0f})"


def verdicts_report(verdicts: pd.DataFrame) -> RenderableType:
    """Return which tolerances are met and which are not."""
    table = cells_table(
        "tolerances: mean |error| over the cells, and that of the worst", first="mode", second="metric"
    )
    for heading in ("mean", "at most", "worst", "at most", ""):
        table.add_column(heading, justify="right")
    table.add_column("worst cell")
    for row in verdicts.to_dict("records"):
        r = row["metric"] == CORRELATION
        kind, digits = ("f", 3) if r else ("%", 1)
        limit = "" if math.isinf(row["most_worst"]) else percent(row["most_worst"])
        numbers = [
            _apart(row["mean"], row["most_mean"], kind, digits), f"{row['most_mean']:.{digits}{kind}}",
            _apart(row["worst"], row["most_worst"], kind, digits),
        ]  # fmt: skip
        style = None if row["met"] else "bold"
        numbers[1] = f"least {numbers[1]}" if r else numbers[1]
        table.add_row(
            row["mode"],
            row["metric"],
            *numbers,
            limit,
            "met" if row["met"] else "NOT MET",
            row["worst_cell"],
            style=style,
        )
    missed = int((~verdicts["met"].astype(bool)).sum())
    return Group(table, Text(f"{len(verdicts) - missed} of {len(verdicts)} tolerances are met"))


def _apart(value: float, limit: float, kind: str, digits: int) -> str:
    """Return a value with so many digits, or with more if it would look like a limit that it is not (at most 6)."""
    for more in range(digits, 7):
        text = f"{value:.{more}{kind}}"
        if value == limit or text != f"{limit:.{more}{kind}}":
            break
    return text


def decisions_report(found: Sequence[Decision]) -> RenderableType:
    """Return, for each pair of layouts that live runs tell apart, the layout that each mode names, and the regret."""
    if not found:
        return Text("decisions: no two layouts under the same load differ by more than the live spread")
    modes = list(dict.fromkeys(mode for one in found for mode in one.named))
    table = cells_table("decisions between layouts that live runs tell apart", first="better live", second="than")
    table.add_column("by", justify="right")
    for mode in modes:
        table.add_column(f"{mode}:\nregret", justify="right")
    table.add_column("load")
    for one in found:
        names = [_layout(cell, (one.winner, one.loser)) for cell in (one.winner, one.loser)]
        shown = ["right" if one.regret.get(mode) == 0 else _regret(one, mode) for mode in modes]
        table.add_row(*names, percent(one.gain), *shown, one.load)
    parts: list[RenderableType] = [table]
    for mode in modes:
        asked = [one for one in found if mode in one.named]
        right = sum(one.regret[mode] == 0 for one in asked)
        lost = [one.regret[mode] for one in asked if one.metric == "tokens/s"]
        mean = f"; mean regret {sum(lost) / len(lost):.0f} tokens/s over {len(lost)} closed loops" if lost else ""
        parts.append(Text(f"{mode}: names the better layout in {right} of {len(asked)} decisions{mean}"))
    return Group(*parts)


def _layout(cell: Cell, pair: tuple[Cell, Cell]) -> str:
    same = pair[0].draft_length == pair[1].draft_length
    return cell.architecture if same else f"{cell.architecture}, k {cell.draft_length}"


def _regret(one: Decision, mode: str) -> str:
    if mode not in one.regret:
        return "-"
    digits = 0 if one.metric == "tokens/s" else 3
    return f"{one.regret[mode]:.{digits}f} {one.metric}"


def explanation_report(found: Sequence[Explanation]) -> RenderableType:
    """Return where the mean latency error of each run comes from: by cause, by segment, and where the runs part."""
    cells = pd.DataFrame([cell_of(one.live) for one in found], columns=CELL_COLUMNS)
    causes = cells_table("where the error of the mean latency comes from, % of the live mean latency")
    for heading in ("error", "solo\ndurations", "padding", "host\ntime", "contention", "different\nbatches"):
        causes.add_column(heading, justify="right")
    causes.add_column("same\nbatches", justify="right")
    segments = cells_table("solo durations, padding and contention (cont.) by segment, % of the live mean latency")
    shown = [
        cause for cause in (SOLO, PADDING, CONTENTION) if any((one.parts["cause"] == cause).any() for one in found)
    ]
    short = {SOLO: "solo", PADDING: "pad", CONTENTION: "cont."}
    for cause in shown:
        for label in SEGMENTS.values():
            segments.add_column(f"{short[cause]}\n{label}", justify="right")
    for one in found:
        names = cell_columns(cell_of(one.live), cells)
        shares = [one.share(cause) for cause in (SOLO, PADDING, HOST, CONTENTION, BATCHES)]
        causes.add_row(*names, *(_points(value) for value in (one.error, *shares)), percent(one.same))
        segments.add_row(*names, *(_points(one.share(cause, segment)) for cause in shown for segment in SEGMENTS))
    causes.add_section()
    causes.add_row(
        "mean |...|",
        "",
        *(f"{100 * _mean(found, cause):.1f}" for cause in (None, SOLO, PADDING, HOST, CONTENTION, BATCHES)),
        "",
        style="bold",
    )
    parting = [
        Text(f"{cell_of(one.live)}: {one.parting}") for one in found if one.parting is not None and one.same < 1
    ]
    return Group(causes, segments, Text("the first batch of a lane that differs", style="bold"), *parting)


def _mean(found: Sequence[Explanation], cause: str | None) -> float:
    return sum(abs(one.error if cause is None else one.share(cause)) for one in found) / len(found)


def _points(value: float) -> str:
    return "." if value == 0 else f"{100 * value:+.1f}"
