"""The sections of a report: what a folder of results found, and where its numbers come from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from engines.errors import InputError
from engines.storage.files import holds
from experiments.compare.compare import METRIC_COLUMNS, PAIRED_COLUMNS, Comparison
from experiments.compare.explain import explained_path
from experiments.compare.fidelity import METRICS, Fidelity, fidelity_path
from experiments.compare.fidelity_report import fidelity_tables
from experiments.compare.report import cells_report, comparison_tables, measured_rows, percent, verdict
from experiments.report.provenance import RECORD, Provenance, seeds_text
from experiments.report.sources import Sources
from experiments.report.tables import PageTable, of_frame, of_printed, sentence, text
from experiments.runner.cells import CELL_COLUMNS, Cell, load_runs
from experiments.runner.folder import CELLS, SETTINGS, profile_of
from experiments.runner.results import FACTS, FAILED
from experiments.search import report as search_report
from experiments.search import search as searching
from experiments.search.config import Search
from experiments.sweep import report as sweep_report
from experiments.sweep import store
from experiments.sweep.config import Sweep

COMPARISON = "comparison.csv"
BENCH = "bench.toml"
DEEPEST = 4  # folders below the given one in which results are looked for
BEFORE = {"spread": "live_spread", "repeats": "live_repeats"}  # columns of comparisons, renamed since
CAPTIONS = {
    "load": "Throughput and latency over the load: live points, simulated lines",
    "error_distribution": "Errors of the predictions by metric: one point per cell",
    "predicted_measured": "Predicted against measured: latency of every replayed request, throughput of every cell",
    "explained": "Where the error of the mean latency comes from, cell by cell",
    "decomposition": "Parts of the mean latency, live beside simulated",
    "timeline": "Lanes over time, live above simulated",
    "stage_costs": "Durations of the stages: measured, and as modelled",
    "contention": "Rates of segments that run together: predicted against measured",
    "acceptance": "Accepted drafts: measured, and as the acceptance models draw them",
    "sweep": "All metrics over the axis of the sweep, with confidence bands",
    "front": "Candidates, and the Pareto front of the objective against P95 TPOT",
}


@dataclass(frozen=True)
class Picture:
    """A figure: a PNG file's content and what it shows."""

    caption: str
    png: bytes


@dataclass
class Section:
    """One folder of results. findings: sentences. problems: what failed, or what is missing."""

    kind: str
    name: str
    folder: Path
    provenance: Provenance
    findings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tables: list[PageTable] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def sections(folders: Iterable[Path]) -> list[Section]:
    """Return a section per folder of results: the given ones, or those below them, in order of their paths.

    Raises InputError for a folder in which there is none, and for damaged results.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError("report", str(folder), "no such folder; give the folder of a result")
        below = list(_results(folder, DEEPEST))
        if not below:
            remedy = (
                "no results in it; give a folder of an experiment, a comparison, a sweep, a search, a bench or runs"
            )
            raise InputError("report", str(folder), remedy)
        found += [make(place) for place, make in below]
    return found


def _results(folder: Path, depth: int) -> Iterator[tuple[Path, Callable[[Path], Section]]]:
    for name, make in MAKERS.items():
        if (folder / name).is_file():
            yield folder, make
            return
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if holds(folder, RECORD) or any(holds(path, RECORD) for path in below):
        yield folder, _runs
    elif depth:
        for path in below:
            yield from _results(path, depth - 1)


def _experiment(folder: Path) -> Section:
    sources = Sources(folder)
    settings = sources.toml(SETTINGS)
    section = Section("experiment" if settings else "comparison", str(settings.get("name", folder.name)), folder,
                      Provenance(sources))  # fmt: skip
    cells = sources.csv(CELLS, FACTS)
    if cells is not None:
        _add_cells(section, cells)
    by_mode = fidelity_path(Path(COMPARISON)).name
    errors = sources.csv(by_mode, ["mode", *CELL_COLUMNS, *METRICS])
    if errors is not None:
        found = Fidelity.of_table(errors)
        section.findings += _fidelity_findings(found)
        *modes, totals = fidelity_tables(found)
        section.tables = [of_printed(table, by_mode) for table in (totals, *modes)] + section.tables
    comparison = _comparison(sources)
    if comparison is not None:
        section.findings += [] if errors is not None else [f"{sentence(verdict(comparison))}."]
        paired = [] if comparison.paired.empty else [COMPARISON.replace(".", "_paired.")]
        for table, names in zip(comparison_tables(comparison), ([COMPARISON], [COMPARISON], paired), strict=False):
            section.tables.append(of_printed(table, *names))
    explained = explained_path(Path(COMPARISON)).name
    causes = sources.csv(explained, [*CELL_COLUMNS, "cause", "run", "share"])
    if causes is not None:
        section.tables.append(_causes(causes, explained))
    section.pictures = _pictures(folder / "figures")
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
    section.tables.append(of_printed(cells_report(cells[cells["architecture"] != ""]), CELLS))


def _fidelity_findings(found: Fidelity) -> list[str]:
    """Return a sentence per mode: the mean absolute errors over its cells."""
    lines = []
    for mode, rows in found.totals().groupby("mode", sort=False):
        means = dict(zip(rows["metric"], rows["mean"], strict=True))
        errors = ", ".join(f"{metric} {percent(mean)}" for metric, mean in means.items() if metric in METRICS)
        lines.append(f"{sentence(str(mode))} of {len(found.cells[str(mode)])} cells, mean absolute errors: {errors}.")
    return lines


def _comparison(sources: Sources) -> Comparison | None:
    metrics = sources.csv(
        COMPARISON, [*CELL_COLUMNS, "metric", "live", "simulated", "error"], numbers=["live", "error"]
    )
    if metrics is None:
        return None
    metrics = metrics.rename(columns=BEFORE).reindex(columns=METRIC_COLUMNS)
    metrics["differs"] = metrics["differs"].astype(object).fillna("")
    paired = sources.csv(COMPARISON.replace(".", "_paired."), PAIRED_COLUMNS)
    return Comparison(metrics, pd.DataFrame(columns=PAIRED_COLUMNS) if paired is None else paired)


def _causes(causes: pd.DataFrame, name: str) -> PageTable:
    """Return the parts of the error of the mean latency, in % of the live mean latency, by cell and cause."""
    order = list(dict.fromkeys(causes["cause"]))
    by_run = causes.pivot_table(index=[*CELL_COLUMNS, "run"], columns="cause", values="share", aggfunc="sum")
    wide = 100 * by_run.groupby(level=CELL_COLUMNS, sort=False).mean()[order]
    frame = wide.assign(error=wide.sum(axis="columns"))
    frame.insert(0, "cell", [str(Cell(*values)) for values in frame.index])
    return of_frame(
        frame, "Where the error of the mean latency comes from, % of the live mean latency", name,
        note="The causes add up to the error. Means over the repeats.", form="{:+.1f}".format,
    )  # fmt: skip


def _sweep(folder: Path) -> Section:
    sources = Sources(folder)
    settings = sources.toml(store.SETTINGS)
    sweep = Sweep.load(folder / store.SETTINGS)
    rows = sources.parquet(store.ROWS, ["cell", "repeat", "seed", "status", "error"])
    summary = sources.parquet(store.SUMMARY, ["cell", "failed_repeats", "error"])
    section = Section("sweep", sweep.name, folder, Provenance(sources))
    section.findings.append(f"{len(summary)} cells, {sweep.repeats} repeats each: {len(rows)} simulated runs.")
    section.findings += _objective(sweep)
    section.findings += [f"{note}." for note in sweep_report.notes(rows)]
    section.problems += sweep_report.failures(summary)
    section.tables.append(of_printed(sweep_report.summary_report(sweep, summary), store.SUMMARY, of=sweep.name))

    def draw(place: Path) -> None:
        from experiments.sweep.figures import draw  # seaborn takes a second to import

        draw(sweep, rows, place)

    _draw(section, draw)
    section.provenance.add_settings(store.SETTINGS, settings)
    section.provenance.facts["Simulations"] = {"seeds": seeds_text(rows["seed"].astype(int))}
    section.provenance.add_profile(Path(sweep.profile))
    return section


def _search(folder: Path) -> Section:
    sources = Sources(folder)
    settings = sources.toml(searching.SETTINGS)
    search = Search.load(folder / searching.SETTINGS)
    candidates = sources.parquet(searching.CANDIDATES, ["architecture", "status", "reason", "objective"])
    rows = sources.parquet(store.ROWS, ["seed"])
    section = Section("search", search.name, folder, Provenance(sources))
    section.findings += [f"{sentence(line)}." for line in search_report.rejections(candidates)]
    section.findings.append(f"{len(candidates)} candidates, {len(rows)} simulated runs.")
    section.findings += _objective(search)
    section.tables.append(
        of_printed(search_report.candidates_report(search, candidates), searching.CANDIDATES, of=search.name)
    )

    def draw(place: Path) -> None:
        from experiments.search.figures import draw_front

        draw_front(search, candidates, place)

    _draw(section, draw)
    section.provenance.add_settings(searching.SETTINGS, settings)
    section.provenance.facts["Simulations"] = {"seeds": seeds_text(rows["seed"].astype(int))}
    section.provenance.add_profile(Path(search.profile))
    return section


def _objective(settings: Sweep | Search) -> list[str]:
    """Return what a request has to meet, if the settings say so."""
    limits = {"TTFT": settings.slo_ttft_s, "TPOT": settings.slo_tpot_s}
    said = [f"a {name} of at most {seconds:g} s" for name, seconds in limits.items() if seconds is not None]
    return [f"SLO of a request: {' and '.join(said)}."] if said else []


def _bench(folder: Path) -> Section:
    sources = Sources(folder)
    info = sources.toml(BENCH)
    section = Section("bench", folder.name, folder, Provenance(sources))
    ceilings: Mapping[str, Any] = info.get("ceilings", {})
    said = {"copy_bytes_per_s": "copies {} TB/s", "matrix_operations_per_s": "matrix products {} TFLOP/s"}
    found = [form.format(text(float(ceilings[name]) / 1e12)) for name, form in said.items() if name in ceilings]
    section.findings += [f"{', '.join(found)}."] if found else []
    section.problems += [str(failure) for failure in info.get("failures", [])]
    for name, caption in (
        ("engines", "Engines in closed loops"), ("stages", "Stages alone, and their floors"),
        ("peers", "transformers' own generation, on the same pair and prompts"),
    ):  # fmt: skip
        table = sources.csv(f"{name}.csv", [])
        if table is not None:
            section.tables.append(of_frame(table, caption, f"{name}.csv"))
    section.provenance.add_settings(BENCH, {"settings": info["settings"]} if "settings" in info else info)
    section.provenance.add_measurement("Bench", info)
    return section


def _runs(folder: Path) -> Section:
    section = Section("runs", folder.name, folder, Provenance(Sources(folder)))
    runs = load_runs("report", folder)
    section.findings.append(f"{len(runs)} runs.")
    section.tables.append(of_printed(cells_report(measured_rows(runs)), "the records"))
    section.provenance.add_records([folder])
    return section


MAKERS: dict[str, Callable[[Path], Section]] = {
    SETTINGS: _experiment, COMPARISON: _experiment, store.SETTINGS: _sweep, searching.SETTINGS: _search,
    BENCH: _bench,
}  # fmt: skip
"""What makes a section of a folder, by the file that marks it."""


def _pictures(folder: Path) -> list[Picture]:
    """Return the PNG files of a folder of figures, those with a caption first and in its order."""
    order = {stem: place for place, stem in enumerate(CAPTIONS)}

    def rank(path: Path) -> tuple[int, str]:
        return min((order[stem] for stem in order if path.stem.startswith(stem)), default=len(order)), path.name

    return [Picture(_caption(path.stem), path.read_bytes()) for path in sorted(folder.glob("*.png"), key=rank)]


def _caption(stem: str) -> str:
    known = max((name for name in CAPTIONS if stem.startswith(name)), key=len, default="")
    rest = stem.removeprefix(known).strip("_-").replace("_", " ")
    return ": ".join(filter(None, (CAPTIONS.get(known), rest)))


def _draw(section: Section, draw: Callable[[Path], None]) -> None:
    """Draw the figures of a page's width from the tables that were read."""
    try:
        with tempfile.TemporaryDirectory() as place:
            draw(Path(place))
            section.pictures = [p for p in _pictures(Path(place)) if p.caption in CAPTIONS.values()]
    except InputError as error:
        section.problems.append(f"no figures: {error}")
