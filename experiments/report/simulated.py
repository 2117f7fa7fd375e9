"""Sections of sweeps and searches, with figures drawn from their tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from engines.errors import InputError
from experiments.maps.questions import MAPS
from experiments.report.provenance import Provenance, seeds_text
from experiments.report.section import Picture, Section, pictures
from experiments.report.sources import Sources
from experiments.report.tables import of_frame, of_printed, sentence
from experiments.search import report as search_report
from experiments.search import search as searching
from experiments.search.config import Search
from experiments.sweep import report as sweep_report
from experiments.sweep import store
from experiments.sweep.config import Sweep
from experiments.sweep.table import DECIMAL, NAMES, PLACE, STATUS, WHOLE

TEXTS = ["fingerprint", *STATUS, *(name for name in NAMES if name not in (*WHOLE, *DECIMAL))]
MAPPED = ["x", "y", "winner", "option", "rival_option", "gain", "gain_low", "gain_high", "open", "gain_open"]
RESULTS = ["final_attainment", "probability_best", "front", "slo_attainment", "ttft_s.p95", "tpot_s.p95"]


def sweep(folder: Path) -> Section:
    """Return the section of a sweep."""
    sources = Sources(folder)
    settings = sources.toml(store.SETTINGS)
    config = Sweep.load(folder / store.SETTINGS)
    axes = config.varying()
    rows = sources.parquet(store.ROWS, [*PLACE, *STATUS, "architecture", *axes], TEXTS)
    summary = sources.parquet(store.SUMMARY, ["cell", "failed_repeats", "error", "architecture", *axes], TEXTS)
    section = Section("sweep", config.name, folder, Provenance(sources))
    section.findings.append(f"{len(summary):,} cells with {config.repeats} repeats each: {len(rows):,} runs.")
    section.findings += [*_objective(config), *(f"{note}." for note in sweep_report.notes(rows))]
    section.problems += sweep_report.failures(summary)
    section.tables.append(of_printed(sweep_report.summary_report(config, summary), store.SUMMARY, of=config.name))

    def draw(place: Path) -> None:
        from experiments.sweep.figures import draw  # seaborn takes a second to import

        draw(config, rows, place)

    _draw(section, draw, "sweep")
    _add_provenance(section, store.SETTINGS, settings, rows, config.profile)
    return section


def search(folder: Path) -> Section:
    """Return the section of a search."""
    sources = Sources(folder)
    settings = sources.toml(searching.SETTINGS)
    config = Search.load(folder / searching.SETTINGS)
    unit = "requests/s" if config.rates else "tokens/s"
    columns = ["architecture", *config.space, "objective", "final_objective", "status", "reason"]
    texts = [*TEXTS, "reason", *config.space]
    candidates = sources.parquet(searching.CANDIDATES, [*columns, *RESULTS], texts)
    rows = sources.parquet(store.ROWS, PLACE, TEXTS)
    section = Section("search", config.name, folder, Provenance(sources))
    best = candidates[candidates["status"] == searching.CHOSEN]
    for row in best.to_dict("records"):
        chosen = ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in config.space)
        section.findings.append(
            f"Chosen: {row['architecture']}, {chosen}. On other seeds: {row['final_objective']:,.4g} {unit}; "
            f"the best of the finalists with a probability of {row['probability_best']:.2f}."
        )
    section.problems += [] if len(best) else ["no candidate meets the SLO"]
    section.findings.append(f"{len(candidates)} candidates, {len(rows):,} runs.")
    section.findings += [
        *_objective(config),
        *(f"Rejected: {line}." for line in search_report.rejections(candidates)),
    ]
    printed = search_report.candidates_report(config, candidates)
    section.tables.append(of_printed(printed, searching.CANDIDATES, of=config.name))
    section.details.append(
        of_frame(candidates[columns], f"Every candidate, objective in {unit}", searching.CANDIDATES)
    )

    def draw(place: Path) -> None:
        from experiments.search.figures import draw_front

        draw_front(config, candidates, place)

    _draw(section, draw, "front-page")
    _add_provenance(section, searching.SETTINGS, settings, rows, config.profile)
    return section


def panels(folder: Path) -> list[Path]:
    """Return the tables of the maps in a folder."""
    found = [path for name in MAPS for path in folder.glob(f"{name}-*.parquet")]
    return sorted(path for path in found if path.with_suffix(".png").is_file())


def maps(folder: Path) -> Section:
    """Return the section of a folder of maps: their figures, and the winner of every cell."""
    sources = Sources(folder)
    section = Section("maps", folder.name, folder, Provenance(sources))
    for path in panels(folder):
        table = sources.parquet(path.name, MAPPED, ["winner", "option", "rival", "rival_option"])
        still_open = int((table["open"] | table["gain_open"]).sum())
        gains = f"{table['gain'].min():.2f} to {table['gain'].max():.2f} times the reference"
        caption = f"{path.stem.replace('-', ' ')}: {gains}; {still_open} of {len(table)} cells are open"
        section.pictures.append(Picture(sentence(caption), path.with_suffix(".png").read_bytes()))
        section.details.append(of_frame(table[MAPPED], sentence(path.stem.replace("-", " ")), path.name))
    section.findings.append("1 map." if len(section.pictures) == 1 else f"{len(section.pictures)} maps.")
    section.provenance.add_calls()
    return section


def _objective(config: Sweep | Search) -> list[str]:
    """Return what a request has to meet, if the configuration says so."""
    limits = {"TTFT": config.slo_ttft_s, "TPOT": config.slo_tpot_s}
    said = [f"a {name} of at most {seconds:g} s" for name, seconds in limits.items() if seconds is not None]
    return [f"SLO of a request: {' and '.join(said)}."] if said else []


def _draw(section: Section, draw: Callable[[Path], None], stem: str) -> None:
    """Add the figures whose names begin with `stem`: those with the width of a page."""
    try:
        with tempfile.TemporaryDirectory() as place:
            draw(Path(place))
            section.pictures = pictures(Path(place).glob(f"{stem}*.png"))
    except InputError as error:
        section.problems.append(f"no figures: {error}")


def _add_provenance(section: Section, name: str, settings: dict[str, Any], rows: pd.DataFrame, profile: str) -> None:
    section.provenance.add_calls()
    section.provenance.add_settings(name, settings)
    section.provenance.facts["Simulations"] = {"seeds": seeds_text(rows["seed"].astype(int))}
    section.provenance.add_profile(Path(profile))
