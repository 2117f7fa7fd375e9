"""Run a sweep in a folder: whatever has no result there yet, then the tables."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w

from calibrate.profile import Profile
from engines.errors import InputError
from engines.pairs.origin import pair_name
from engines.pairs.permutation import PREFIX, parse_pair
from engines.storage.files import replaced
from engines.storage.locks import locked
from experiments.program.outputs import check_file, check_ours, check_output
from experiments.program.progress import bar, console
from experiments.program.provenance import PROVENANCE, note_call
from experiments.runner.cells import fingerprint, kept
from experiments.runner.predict import AcceptanceChoice, Prediction, check, parse_acceptance, without_live
from experiments.sweep.cells import Cell, workload_of
from experiments.sweep.config import SCHEMA_VERSION, Sweep
from experiments.sweep.estimate import Estimate
from experiments.sweep.simulation import Objective, Simulation
from experiments.sweep.store import CHUNKS, FIGURES, FILES, RECORDS, ROWS, SETTINGS, SUMMARY, Results
from experiments.sweep.table import PLACE, rows_table, summary_table
from experiments.sweep.workers import Backend, results


@dataclass
class Outcome:
    """The tables of a sweep (see experiments.sweep.table), and how many simulations this call ran."""

    rows: pd.DataFrame
    summary: pd.DataFrame
    simulations: int


def run_sweep(
    sweep: Sweep, folder: Path, *, jobs: int | None = None, backend: str = "processes", records: bool = False,
    command: str = "",
) -> Outcome:  # fmt: skip
    """Simulate what has no finished result in the folder yet, and write the tables.

    However often this is killed and called again, the tables are those of one undisturbed call. jobs, backend: see
    experiments.sweep.workers.results. records: keep the record of every run, in records/FINGERPRINT. command: that
    this was called by, for provenance.toml. Raises
    InputError before any work for input that cannot be run, if another process writes to the folder, or if something
    in it would be replaced that no sweep wrote.
    """
    if records and backend == Backend.RAY:
        raise InputError("records", backend, "records are written on this machine; use processes, or leave them out")
    settings = prediction(sweep.profile, sweep.pair, sweep.extrapolate, sweep.max_context)
    cells, seeds = sweep.cells(), range(sweep.seed, sweep.seed + sweep.repeats)
    check_masks(cells, seeds, settings)
    places = places_of(cells, settings, seeds)
    with locked(folder):
        check_folder(folder, (*FILES, PROVENANCE), (CHUNKS, RECORDS, FIGURES), mark="confidence")
        store = Results(folder)
        with replaced(folder / SETTINGS) as beside:
            beside.write_text(tomli_w.dumps({"schema_version": SCHEMA_VERSION, **sweep.resolved()}), encoding="utf-8")
        note_call(folder, command)
        known = store.load()
        done = set(known.index[known["error"] == ""])
        if records:
            done = {digest for digest in done if kept(folder / RECORDS / digest, digest) is not None}
        missing = Simulations(cells, places, done, settings.acceptance, folder / RECORDS if records else None)
        missing.shuffle(sweep.seed)  # so that what is done tells how long the rest takes
        try:
            with bar(sweep.name) as progress:
                estimate = Estimate(missing.work)
                for rows, work in results(missing, settings, jobs, backend) if len(missing) else ():
                    store.add(rows)
                    progress(*estimate.done(work))
                    estimate.report(console)
        finally:
            store.flush()
        table = rows_table(places, columns_of(cells, settings.acceptance), store.load())
        outcome = Outcome(table, summary_table(table, sweep.confidence), len(missing))
        store.finish({ROWS: outcome.rows, SUMMARY: outcome.summary})
        return outcome


def prediction(place: str, pair: str | None, extrapolate: bool, max_context: int | None) -> Prediction:
    """Return the settings that all simulations share.

    place: folder of the profile. pair: what it must be of, if given. Raises InputError.
    """
    profile = Profile.load(Path(place))
    if pair is not None:
        called = parse_pair(pair).name if pair.startswith(PREFIX) else pair_name(pair)
        if called != profile.info["pair"]:
            raise InputError("pair", pair, f"the profile is of {profile.info['pair']!r}; give a profile of this pair")
    return Prediction(profile, without_live(profile), extrapolate=extrapolate, max_context=max_context)


def check_masks(cells: Sequence[Cell], seeds: Sequence[int], settings: Prediction) -> None:
    """Raise InputError if a file of masks does not cover the requests of its cells."""
    for cell in cells:
        chosen = None if cell.settings.acceptance is None else parse_acceptance(cell.settings.acceptance)
        if chosen is not None and chosen.masks:
            asked = dataclasses.replace(settings, acceptance=chosen)
            for seed in seeds:
                check(cell.architecture, workload_of(cell.settings.workload(), cell.settings.load, seed), asked)


def places_of(cells: Sequence[Cell], settings: Prediction, seeds: Sequence[int]) -> pd.DataFrame:
    """Return the cell, repeat, seed and fingerprint of every row, one for each cell and seed.

    The fingerprint is a digest of everything that determines the row: its settings, the profile and the program.
    """
    shared = fingerprint({**settings.describe(), "seed": None, "rows": SCHEMA_VERSION})
    rows = []
    for number, cell in enumerate(cells, 1):
        objective = [cell.settings.slo_ttft_s, cell.settings.slo_tpot_s]
        for repeat, seed in enumerate(seeds, 1):
            digest = fingerprint({"shared": shared, "cell": cell.digest, "slo": objective, "seed": seed})
            rows.append((number, repeat, seed, digest))
    return pd.DataFrame(rows, columns=PLACE)


def columns_of(cells: Sequence[Cell], acceptance: AcceptanceChoice) -> pd.DataFrame:
    """Return the settings of every cell, one row each."""
    return pd.DataFrame([{"cell": number, **cell.columns(acceptance)} for number, cell in enumerate(cells, 1)])


class Simulations(Sequence[Simulation]):
    """The simulations that are still to be run, made when they are asked for.

    Rows that differ in nothing but their objectives share one. done: fingerprints of the rows that have a result.
    acceptance: of the cells whose settings name none. records: folder for records, if they are to be kept.
    """

    def __init__(
        self, cells: Sequence[Cell], places: pd.DataFrame, done: Collection[str], acceptance: AcceptanceChoice,
        records: Path | None = None,
    ) -> None:  # fmt: skip
        self._cells, self._acceptance, self._records = cells, acceptance, records
        groups: dict[tuple[str, int], list[tuple[int, str]]] = {}
        for number, _, seed, digest in places.itertuples(index=False):
            if digest not in done:
                groups.setdefault((cells[number - 1].digest, seed), []).append((number, digest))
        self._groups = [(seed, rows) for (_, seed), rows in groups.items()]
        self.work = sum(cells[rows[0][0] - 1].work for _, rows in self._groups)

    def shuffle(self, seed: int) -> None:
        random.Random(seed).shuffle(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: Any) -> Any:
        seed, rows = self._groups[index]
        first = self._cells[rows[0][0] - 1]
        chosen = (
            self._acceptance if first.settings.acceptance is None else parse_acceptance(first.settings.acceptance)
        )
        objectives = []
        for number, digest in rows:
            settings = self._cells[number - 1].settings
            objectives.append((digest, Objective(settings.slo_ttft_s, settings.slo_tpot_s)))
        record = None if self._records is None else self._records / rows[0][1]
        return Simulation(
            first.architecture, first.settings.fleet, first.settings.workload(), first.settings.load, chosen, seed,
            tuple(objectives), first.work, record,
        )  # fmt: skip


def check_folder(folder: Path, files: Sequence[str], folders: Sequence[str], mark: str) -> None:
    """Raise InputError if one of these would be replaced and is not ours.

    files: the first one is a TOML file; in ours, it has the key `mark`.
    """
    for name in files:
        check_file("out", folder / name)
    for name in folders:
        check_output("out", folder / name)
    check_ours("out", folder, (*files, *folders), mark=mark)
