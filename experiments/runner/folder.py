"""The folder of an experiment: what lies where, and that nothing in it is replaced that no experiment has made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from calibrate.parts import check_parts
from calibrate.profile import PROFILE_FILES
from engines.errors import InputError
from engines.storage.reading import read_toml
from experiments.program.outputs import MOVE, UNFINISHED, check_file, check_ours, check_output
from experiments.runner.cells import cell_folder

SETTINGS, CELLS = "experiment.toml", "cells.csv"
FILES = (SETTINGS, CELLS, "comparison.csv", "comparison_paired.csv", "comparison.txt")
FOLDERS = ("live", "simulated", "profile", "figures", "traces")


def check_folder(folder: Path, names: Iterable[str]) -> None:
    """Raises InputError if something is in the way of the files, or of the records of these names, that no experiment
    wrote."""
    for name in FILES:
        check_file("out", folder / name)
    for name in FOLDERS:
        check_output("out", folder / name)
    settings = folder / SETTINGS
    present = [name for name in (*FILES, *FOLDERS) if (folder / name).exists()]
    if present and not (settings.is_file() and "architectures" in read_toml("out", settings, MOVE)):
        raise InputError("out", str(folder), f"{present[0]} is there and no experiment wrote it; {MOVE}")
    for name in names:
        cell_folder(folder / "live", name)
        cell_folder(folder / "simulated", name)
        cell_folder(folder / "simulated", f"{name}-replay")


def check_profile_folder(folder: Path) -> None:
    """Raises InputError if something is in the way of a profile, or of its unfinished parts, that no experiment
    wrote."""
    check_output("out", folder, PROFILE_FILES)
    check_ours("out", folder, PROFILE_FILES, mark="fingerprint")
    check_parts(folder / UNFINISHED)
