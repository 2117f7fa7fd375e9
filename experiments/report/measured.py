"""Sections of what was measured: experiments, comparisons, benches and runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from engines.storage.validation import Positive, Record, checked
from experiments.compare.compare import METRIC_COLUMNS, PAIRED_COLUMNS, Comparison, paired_path
from experiments.compare.explain import explained_path
from experiments.compare.fidelity import METRICS, Fidelity, fidelity_path
from experiments.compare.fidelity_report import fidelity_tables
from experiments.compare.report import cells_report, comparison_tables, measured_rows, percent, verdict
from experiments.report.provenance import Provenance
from experiments.report.section import Section, pictures
from experiments.report.sources import REMEDY, Sources
from experiments.report.tables import PageTable, of_frame, of_printed, sentence, text
from experiments.runner.cells import CELL_COLUMNS, Cell, load_runs
from experiments.runner.folder import CELLS, SETTINGS, profile_of
from experiments.runner.results import FACTS, FAILED

COMPARISON, BENCH = "comparison.csv", "bench.toml"
PAIRED, ERRORS, CAUSES = (
    path_of(Path(COMPARISON)).name for path_of in (paired_path, fidelity_path, explained_path)
)  # fmt: skip
BEFORE = {"spread": "live_spread", "repeats": "live_repeats"}  # columns of comparisons, renamed since
MS = {
    f"{label} {shown} (ms)": f"{name}_s.{statistic} {name}_{before}_s"
    for name, label in (("ttft", "TTFT"), ("tpot", "TPOT"), ("latency", "latency"))
    for statistic, before, shown in (("median", "p50", "median"), ("p95", "p95", "P95"))
}
FACTORS = {"busy (%)": 100.0, **dict.fromkeys(MS, 1e3)}
BENCHED: dict[str, tuple[str, dict[str, str]]] = {
    "engines": ("Engines in closed loops", {
        "architecture": "architecture", "prefill limit": "prefill_limit", "draft limit": "draft_limit",
        "verify limit": "verify_limit", "clients": "clients",
        "tokens/s": "throughput_tokens_per_s overall_tokens_per_s",
        "steady tokens/s": "steady_throughput_tokens_per_s tokens_per_s", **MS, "busy (%)": "running_at_least_1",
        "outputs": "checked", "exact": "equal",
    }),
    "stages": ("Stages alone, and the least times that the device allows", {
        "segment": "segment", "batch size": "batch_size batch", "tokens": "tokens", "context": "context_tokens",
        "median (ms)": "p50_ms", "P95 (ms)": "p95_ms", "floor (ms)": "floor_ms", "times floor": "times_floor",
        "kernels": "kernels", "TB/s": "tb_per_s", "TFLOP/s": "tflop_per_s",
    }),
    "peers": ("transformers' own generation, on the same pair and prompts", {
        "system": "system", "requests": "requests", "output tokens": "output_tokens",
        "tokens/s": "throughput_tokens_per_s tokens_per_s", "outputs": "checked", "exact": "equal", "note": "note",
    }),
}  # fmt: skip
"""Tables of a bench: caption, and heading -> column, by its name now and those that it had before."""


class BenchInfo(Record):
    """What the page takes from bench.toml."""

    ceilings: dict[str, Positive] = Field(default={})
    failures: list[str] = Field(default=[])
    expected: str = "the reference"
    settings: dict[str, Any] = Field(default={})


def experiment(folder: Path) -> Section:
    """Return the section of an experiment, or of a folder with a comparison."""
    sources = Sources(folder)
    settings = sources.toml(SETTINGS)
    section = Section("experiment" if settings else "comparison", str(settings.get("name", folder.name)), folder,
                      Provenance(sources))  # fmt: skip
    cells = sources.csv(CELLS, FACTS)
    if cells is not None:
        _add_cells(section, cells)
    errors = sources.csv(ERRORS, ["mode", *CELL_COLUMNS, *METRICS])
    if errors is not None:
        found = Fidelity.of_table(errors)
        section.findings += _means(found)
        *modes, totals = fidelity_tables(found)
        section.tables[:0] = [of_printed(table, ERRORS) for table in (totals, *modes)]
    comparison = _comparison(sources)
    if comparison is not None:
        section.findings += [] if errors is not None else [f"{sentence(verdict(comparison))}."]
        for table, name in zip(comparison_tables(comparison), (COMPARISON, COMPARISON, PAIRED), strict=False):
            section.tables.append(of_printed(table, name))
    causes = sources.csv(CAUSES, [*CELL_COLUMNS, "cause", "run", "share"])
    if causes is not None:
        section.tables.append(_causes(causes))
    section.pictures = pictures((folder / "figures").glob("*.png"))
    section.provenance.add_calls()
    section.provenance.add_settings(SETTINGS, settings)
    section.provenance.add_profile(profile_of(folder, settings))
    section.provenance.add_records([folder / "live", folder / "simulated"])
    return section


def _add_cells(section: Section, cells: pd.DataFrame) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in cells["kind"].value_counts(sort=False).items())
    found = f"{cells['cell'].nunique()} cells; runs: {kinds}"
    checked, equal = (int(cells[name].fillna(0).astype(float).sum()) for name in ("checked", "equal"))
    section.findings.append(f"{found}{f'; {equal:,} of {checked:,} checked outputs are exact' if checked else ''}.")
    failed = cells[cells["status"] == FAILED]
    section.problems += [f"{row.cell}, repeat {row.repeat}, {row.kind}: {row.error}" for row in failed.itertuples()]
    ran = cells[cells["architecture"] != ""]
    section.tables += [of_printed(cells_report(ran), CELLS)] if len(ran) else []


def _means(found: Fidelity) -> list[str]:
    """Return a sentence per mode: the mean absolute errors over its cells."""
    lines = []
    for mode, rows in found.totals().groupby("mode", sort=False):
        means = dict(zip(rows["metric"], rows["mean"], strict=True))
        errors = ", ".join(f"{metric} {percent(mean)}" for metric, mean in means.items() if metric in METRICS)
        lines.append(f"{sentence(str(mode))} of {len(found.cells[str(mode)])} cells, mean absolute errors: {errors}.")
    return lines


def _comparison(sources: Sources) -> Comparison | None:
    columns = [*CELL_COLUMNS, "metric", "live", "simulated", "error"]
    metrics = sources.csv(COMPARISON, columns, numbers=["error"])
    if metrics is None:
        return None
    metrics = metrics.rename(columns=BEFORE).reindex(columns=METRIC_COLUMNS)
    metrics["differs"] = metrics["differs"].astype(object).fillna("")
    paired = sources.csv(PAIRED, PAIRED_COLUMNS)
    return Comparison(metrics, pd.DataFrame(columns=PAIRED_COLUMNS) if paired is None else paired)


def _causes(causes: pd.DataFrame) -> PageTable:
    """Return the parts of the error of the mean latency, in % of the live mean latency, by cell and cause."""
    order = list(dict.fromkeys(causes["cause"]))
    by_run = causes.pivot_table(index=[*CELL_COLUMNS, "run"], columns="cause", values="share", aggfunc="sum")
    wide = 100 * by_run.groupby(level=CELL_COLUMNS, sort=False).mean()[order]
    frame = wide.assign(error=wide.sum(axis="columns"))
    frame.insert(0, "cell", [str(Cell(*values)) for values in frame.index])
    return of_frame(
        frame, "Where the error of the mean latency comes from, % of the live mean latency", CAUSES,
        note="The causes add up to the error. Means over the repeats.", form="{:+.1f}".format,
    )  # fmt: skip


def bench(folder: Path) -> Section:
    """Return the section of a bench."""
    sources = Sources(folder)
    info = sources.toml(BENCH)
    known = checked(BenchInfo, info, f"report {folder / BENCH}", REMEDY)
    section = Section("bench", folder.name, folder, Provenance(sources))
    said = {"copy_bytes_per_s": "copies {} TB/s", "matrix_operations_per_s": "matrix products {} TFLOP/s"}
    found = [form.format(text(known.ceilings[name] / 1e12)) for name, form in said.items() if name in known.ceilings]
    section.findings += [f"Measured ceilings of the device: {', '.join(found)}."] if found else []
    section.problems += known.failures
    for name, (caption, columns) in BENCHED.items():
        table = sources.csv(f"{name}.csv", [])
        if table is not None:
            section.tables.append(of_frame(_chosen(table, columns), caption, f"{name}.csv"))
        if table is not None and name == "engines" and {"checked", "equal"} <= set(table):
            counts = f"{table['equal'].sum():,} of {table['checked'].sum():,}"
            section.findings.append(f"{counts} checked outputs equal {known.expected}.")
    section.provenance.add_settings(BENCH, {"settings": known.settings} if known.settings else info)
    section.provenance.add_measurement("Bench", info)
    return section


def _chosen(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return the columns that the table has, by their headings and in their units."""
    found = {
        heading: next((name for name in names.split() if name in table), None) for heading, names in columns.items()
    }
    return pd.DataFrame({
        heading: table[name] * FACTORS[heading] if heading in FACTORS else table[name]
        for heading, name in found.items() if name is not None
    })  # fmt: skip


def runs(folder: Path) -> Section:
    """Return the section of a folder of records, or of one record."""
    section = Section("runs", folder.name, folder, Provenance(Sources(folder)))
    found = load_runs("report", folder)
    section.findings.append("1 run." if len(found) == 1 else f"{len(found)} runs.")
    section.tables.append(of_printed(cells_report(measured_rows(found)), "the records"))
    section.provenance.add_records([folder])
    return section
