"""The folder of an experiment: its files, and checks that it replaces only what an experiment wrote."""

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
    """Raise InputError if the files, or records of these names, would replace something that no experiment wrote."""
    for name in FILES:
        check_file("out", folder / name)
    for name in FOLDERS:
        check_output("out", folder / name)
    settings = folder / SETTINGS
    present = [name for name in (*FILES, *FOLDERS) if (folder / name).exists()]
    if present and not (settings.is_file() and "architectures" in read_toml("out", settings, MOVE)):
        raise InputError("out", str(folder), f"{present[0]} exists and was not written by an experiment; {MOVE}")
    for name in names:
        cell_folder(folder / "live", name)
        cell_folder(folder / "simulated", name)
        cell_folder(folder / "simulated", f"{name}-replay")


def check_profile_folder(folder: Path) -> None:
    """Raise InputError if a profile or its unfinished parts would replace something that no experiment wrote."""
    check_output("out", folder, PROFILE_FILES)
    check_ours("out", folder, PROFILE_FILES, mark="fingerprint")
    check_parts(folder / UNFINISHED)
