"""The folder of an experiment: its files, how to read them, and checks that it replaces only what an experiment
wrote."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from calibrate.parts import check_parts
from calibrate.profile import PROFILE_FILES, Profile
from engines.errors import InputError
from engines.record.run import RUN_FILES, Run
from engines.storage.files import holds
from engines.storage.reading import read_toml
from experiments.program.outputs import MOVE, UNFINISHED, check_file, check_ours, check_output
from experiments.program.provenance import PROVENANCE
from experiments.runner.cells import cell_folder
from experiments.runner.results import KINDS, Key, booked

SETTINGS, CELLS = "experiment.toml", "cells.csv"
COMPARISON = ("comparison.csv", "comparison_paired.csv", "comparison_fidelity.csv", "comparison.txt")
FILES = (SETTINGS, CELLS, *COMPARISON, PROVENANCE)
FOLDERS = ("live", "simulated", "profile", "figures", "traces")
MOST_NAMED = 6  # cells in a message
SUFFIXES = {"replay": "-replay", "blind": "-blind"}
OWNED = {"record": RUN_FILES, "profile": PROFILE_FILES, "experiment": FILES}  # the first file of each marks it


def place_of(key: Key) -> tuple[str, str]:
    """Return where the record of a cell, repeat and kind lies: the folder of its side, and its own folder in it."""
    cell, repeat, kind = key
    return "live" if kind == "live" else "simulated", f"{cell}-r{repeat}{SUFFIXES.get(kind, '')}"


def load_experiment(
    folder: Path, profile: Path | None = None, only: str | None = None, simulated: bool = True
) -> tuple[list[Run], list[Run], Profile]:
    """Return the live runs, the simulated runs and the profile of an experiment.

    profile: a folder to read instead of the experiment's. only: a file-name pattern for the cells to read. simulated:
    False leaves the simulated runs out. Raises InputError, also if a side has no run.
    """
    if not _wrote(folder, "experiment"):
        remedy = "not the folder of an experiment; give one, or a folder of live runs and a folder of simulated runs"
        raise InputError("experiment", str(folder), remedy)
    keys = booked(folder / CELLS)
    chosen = [key for key in keys if only is None or fnmatchcase(key[0], only)]
    if only is not None and not chosen:
        cells = list(dict.fromkeys(cell for cell, *_ in keys)) or ["none"]
        more = f", and {len(cells) - MOST_NAMED} more" if len(cells) > MOST_NAMED else ""
        known = ", ".join(cells[:MOST_NAMED])
        raise InputError("only", only, f"no cell matches; the experiment has {known}{more}")
    sides: dict[str, list[Path]] = {"live": [], "simulated": []}
    for key in chosen:
        side, name = place_of(key)
        sides[side].append(folder / side / name)
    if not simulated:
        del sides["simulated"]
    for side, records in sides.items():
        if not any(holds(record, RUN_FILES[0]) for record in records):
            command = f"pdv experiment {folder / SETTINGS} --out {folder} --only {side}"
            remedy = ", or add --predict" if side == "simulated" else ""
            raise InputError("experiment", str(folder), f"it has no {side} runs; run `{command}`{remedy}")
    place = profile or profile_of(folder, read_toml("experiment", folder / SETTINGS))
    runs = {side: [Run.load(record) for record in records] for side, records in sides.items()}
    return runs["live"], runs.get("simulated", []), Profile.load(place)


def profile_of(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Return the folder of an experiment's profile. A relative path in its settings starts at the experiment."""
    return folder / str(settings.get("profile", "profile"))


def check_apart(field: str, path: Path) -> None:
    """Raise InputError for a file of a record, a profile or an experiment, or a folder that an experiment fills."""
    real = Path(os.path.realpath(path))
    for kind, (mark, *others) in OWNED.items():
        if real.name in (mark, *others) and holds(real.parent, mark):
            raise InputError(field, str(path), f"it belongs to the {kind} in {real.parent}; give another")
    for place in (real, real.parent):
        if place.name in FOLDERS and all(holds(place.parent, name) for name in (SETTINGS, CELLS)):
            raise InputError(field, str(path), f"it belongs to the experiment in {place.parent}; give another")


def _wrote(folder: Path, field: str) -> bool:
    """Return whether an experiment wrote the folder."""
    settings = folder / SETTINGS
    return settings.is_file() and "architectures" in read_toml(field, settings, MOVE)


def check_folder(folder: Path, runs: Iterable[tuple[str, int]]) -> None:
    """Raise InputError if the files, or records of these cells and repeats, would replace something that no
    experiment wrote."""
    for name in FILES:
        check_file("out", folder / name)
    for name in FOLDERS:
        check_output("out", folder / name)
    present = [name for name in (*FILES, *FOLDERS) if (folder / name).exists()]
    if present and not _wrote(folder, "out"):
        raise InputError("out", str(folder), f"{present[0]} exists and was not written by an experiment; {MOVE}")
    for key in runs:
        for kind in KINDS:
            side, name = place_of((*key, kind))
            cell_folder(folder / side, name)


def check_profile_folder(folder: Path) -> None:
    """Raise InputError if a profile or its unfinished parts would replace something that no experiment wrote."""
    check_output("out", folder, PROFILE_FILES)
    check_ours("out", folder, PROFILE_FILES, mark="fingerprint")
    check_parts(folder / UNFINISHED)
