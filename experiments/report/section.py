"""A section of the page: what a folder of results shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from experiments.report.provenance import Provenance
from experiments.report.tables import PageTable

CAPTIONS = {
    "load": "Throughput and latency over the load: live points, simulated lines",
    "error_distribution": "Errors of the predictions by metric: one point per cell",
    "errors": "Errors of the predictions over the load, with bands over the live repeats",
    "predicted_measured": "Predicted against measured: latency of every replayed request, throughput of every cell",
    "explained": "Where the error of the mean latency comes from, cell by cell",
    "decomposition": "Parts of the mean latency, live beside simulated",
    "timeline": "Lanes over time, live above simulated",
    "stage_costs": "Durations of the stages: measured, and as modelled",
    "contention": "Rates of segments that run together: predicted against measured",
    "acceptance": "Accepted drafts: measured, and as the acceptance models draw them",
    "sweep": "Metrics over the axis of the sweep, with confidence bands",
    "front-page": "Candidates, and the Pareto front of the objective against P95 TPOT",
}
"""What the figures show, by how the names of their files begin."""


@dataclass(frozen=True)
class Picture:
    """A figure: the content of a PNG file and what it shows."""

    caption: str
    png: bytes


@dataclass
class Section:
    """One folder of results.

    findings: sentences. problems: what failed, or what is missing. details: tables that few readers need.
    """

    kind: str
    name: str
    folder: Path
    provenance: Provenance
    findings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[PageTable] = field(default_factory=list)
    details: list[PageTable] = field(default_factory=list)


def pictures(paths: Iterable[Path]) -> list[Picture]:
    """Return the figures in these PNG files, in the order of CAPTIONS and those without a caption last."""
    order = {stem: place for place, stem in enumerate(CAPTIONS)}

    def rank(path: Path) -> tuple[int, str]:
        return min((order[stem] for stem in order if path.stem.startswith(stem)), default=len(order)), path.name

    return [Picture(_caption(path.stem), path.read_bytes()) for path in sorted(paths, key=rank)]


def _caption(stem: str) -> str:
    known = max((name for name in CAPTIONS if stem.startswith(name)), key=len, default="")
    rest = stem.removeprefix(known).strip("_-").replace("_", " ")
    return ": ".join(filter(None, (CAPTIONS.get(known), rest)))
