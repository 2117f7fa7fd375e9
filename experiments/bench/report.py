"""Format a bench as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from engines.policy.architecture import Stage
from engines.storage.files import replaced
from experiments.bench.whole import BenchResult
from experiments.compare.report import CELL_METRICS, WIDTH
from experiments.program.progress import AS_IT_IS


def bench_report(result: BenchResult) -> RenderableType:
    """Return all tables and the verdict."""
    info, ceilings = result.info, result.info["ceilings"]
    copies, products = (ceilings[name] / 1e12 for name in ("copy_bytes_per_s", "matrix_operations_per_s"))
    head = (
        f"{info['pair']} in {info['dtype']} on {info['device']}: copies {copies:.3g} TB/s, "
        f"matrix products {products:.3g} TFLOP/s"
    )
    parts: list[RenderableType] = [Text(head), _stages(result), _engines(result)]
    if not result.peers.empty:
        parts.append(_peers(result))
    starts = {_engine(row): row["start_s"] for row in result.engines.to_dict("records")}
    started = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in starts.items())
    parts.append(Text(f"start of the engines, including graph capture (not included above): {started}"))
    parts += [Text(line) for line in _checks(result)]
    parts.append(Text("took " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.parts.items())))
    return Group(*parts)


def write_bench_report(result: BenchResult, folder: Path) -> Path:
    """Write the report as plain text into the folder of the tables."""
    path = folder / "bench.txt"
    with replaced(path) as beside, beside.open("w", encoding="utf-8") as file:
        Console(**AS_IT_IS, file=file, width=WIDTH).print(bench_report(result))
    return path


def _stages(result: BenchResult) -> Table:
    settings = result.info["settings"]
    title = f"stages alone: k = {settings['draft_length']}, context {settings['context']} tokens"
    headings = ["tokens", "median\n(ms)", "P95\n(ms)", "floor\n(ms)", "times\nfloor", "kernels", "TB/s", "TFLOP/s"]
    table = _table(title, "stage", ["batch_size", *headings])
    previous = None
    for row in result.stages.to_dict("records"):
        if previous not in (None, row["segment"]):
            table.add_section()
        previous = row["segment"]
        table.add_row(
            row["segment"].replace("_", " "), f"{row['batch_size']:g}", f"{row['tokens']:g}",
            *(_short(row[name]) for name in ("p50_ms", "p95_ms", "floor_ms", "times_floor")),
            f"{row['kernels']:g}", _short(row["tb_per_s"]), _short(row["tflop_per_s"]),
        )  # fmt: skip
    return table


def _engines(result: BenchResult) -> Table:
    settings = result.info["settings"]
    title = f"engines: {settings['prompt_tokens']} prompt and {settings['output_tokens']} output tokens"
    metrics = [heading for heading, _ in CELL_METRICS.values()]
    table = _table(title, "engine", ["clients", *metrics, "busy\n≥1", "(%)\n≥2", "\n≥3", "exact"])
    table.padding = (0, 0)  # so that each row has one line in WIDTH columns
    table.caption = (
        "behind the name: batch limits of prefill/draft/verify; steady: while all clients were busy; busy: fraction "
        "of the time with this many stages on the device"
    )
    previous = None
    for row in result.engines.to_dict("records"):
        name = _engine(row)
        if previous not in (None, name):
            table.add_section()
        table.add_row(
            name if name != previous else "", f"{row['clients']}",
            *(_short(scale * row[metric], 4) for metric, (_, scale) in CELL_METRICS.items()),
            *(f"{100 * row[f'running_at_least_{n}']:.0f}" for n in (1, 2, 3)),
            _exact(row),
        )  # fmt: skip
        previous = name
    return table


def _peers(result: BenchResult) -> Table:
    table = _table("for comparison: transformers' own generation, on the same pair and prompts", "system", [])
    for heading in ("requests", "output\ntokens", "tokens/s", "exact"):
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold", max_width=42)
    for row in result.peers.to_dict("records"):
        table.add_row(
            row["system"], f"{row['requests']}", f"{row['output_tokens']}", _short(row["throughput_tokens_per_s"], 4),
            _exact(row), row["note"],
        )  # fmt: skip
    return table


def _checks(result: BenchResult) -> list[str]:
    """Return one line per check, with its result."""
    checked, equal = (int(result.engines[name].sum()) for name in ("checked", "equal"))
    rule = "" if result.info["must_be_exact"] else " (rounding may cause differences, which are not failures)"
    lines = [f"outputs: {equal} of {checked} equal {result.info['expected']}{rule}"]
    for findings in result.caches:
        worst = findings.worst
        noticed = ", ".join(f"{name} {'noticed' if ok else 'NOT noticed'}" for name, ok in findings.damage.items())
        lines.append(
            f"caches, {findings.architecture}: {findings.sequences} sequences, worst error of a layer's keys "
            f"{worst.get('key_error', math.nan):.2g}, values {worst.get('value_error', math.nan):.2g}, logits "
            f"{worst.get('logit_error', math.nan):.2g}: {'within' if not findings.failures else 'OUT OF'} tolerance; "
            f"damaged on purpose: {noticed or 'never'}"
        )
    failures = result.failures
    return [*lines, *(f"FAILED: {failure}" for failure in failures), *([] if failures else ["all checks passed"])]


def _table(title: str, first: str, headings: Sequence[str]) -> Table:
    table = Table(
        title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left",
        title_style="bold", caption_style="dim",
    )  # fmt: skip
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _engine(row: Mapping[Any, Any]) -> str:
    """Return the name of an architecture with its batch limits."""
    return f"{row['architecture']} {'/'.join(str(row[f'{stage}_limit']) for stage in Stage)}"


def _exact(row: Mapping[Any, Any]) -> str:
    return f"{row['equal']}/{row['checked']}" if row["checked"] else "-"


def _short(value: float, digits: int = 3) -> str:
    """Format a number with this many significant digits and no exponent."""
    if value is None or math.isnan(value):
        return "-"
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{min(decimals, 4)}f}"
