"""Find results below the folders of a report, and make their sections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from engines.errors import InputError
from engines.storage.files import holds
from experiments.report.measured import BENCH, COMPARISON, bench, experiment, runs
from experiments.report.provenance import RECORD
from experiments.report.section import Section
from experiments.report.simulated import maps, panels, search, sweep
from experiments.runner.folder import SETTINGS
from experiments.search.search import SETTINGS as SEARCH
from experiments.sweep.store import SETTINGS as SWEEP

DEEPEST = 4  # folders below the given one in which results are looked for
MAKERS: dict[str, Callable[[Path], Section]] = {
    SETTINGS: experiment, COMPARISON: experiment, SWEEP: sweep, SEARCH: search, BENCH: bench,
}  # fmt: skip
"""What makes a section of a folder, by the file that marks it."""


def sections(folders: Iterable[Path]) -> list[Section]:
    """Return a section per folder of results: the given ones, or those below them, in order of their paths.

    Raises InputError for a folder in which there is none, and for damaged results.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError("report", str(folder), "not a folder; give the folder of a result")
        below = list(_results(folder, DEEPEST))
        if not below:
            remedy = "no results in it; give an experiment, comparison, sweep, search, map, bench or run"
            raise InputError("report", str(folder), remedy)
        found += [make(place) for place, make in below]
    return found


def _results(folder: Path, depth: int) -> Iterator[tuple[Path, Callable[[Path], Section]]]:
    for name, make in MAKERS.items():
        if (folder / name).is_file():
            yield folder, make
            return
    if panels(folder):
        yield folder, maps
        return
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if holds(folder, RECORD) or any(holds(path, RECORD) for path in below):
        yield folder, runs
    elif depth:
        for path in below:
            yield from _results(path, depth - 1)
