"""Where the numbers of a section come from: command, configuration, profile, device, versions, seeds, commit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w

from calibrate.profile import PROFILE_FILES
from engines.errors import InputError
from engines.storage.files import FINISHED, holds
from engines.storage.reading import read_toml
from experiments.program.provenance import calls
from experiments.report.sources import Sources
from experiments.report.tables import PageTable, of_frame

RECORD, PROFILE = "run.toml", PROFILE_FILES[0]
NOT_RECORDED = "not recorded"
FACTS = {
    "command": "command", "date": "date", "device": "device", "pair": "pair", "dtype": "data type",
    "versions": "versions", "commit": "git commit",
}  # fmt: skip
"""What every measurement should say of itself, by its key in run.toml, profile.toml and bench.toml."""
MANY = 8
UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
LIST = re.compile(r"\[\n( +[^\[\]{}\n]*,\n){1,40}\]")
"""A list of plain values in TOML, with a line for each."""


@dataclass
class Provenance:
    """facts: by what they are about, label -> text. records: one row per run. configuration: file -> TOML text."""

    sources: Sources
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    records: PageTable | None = None
    configuration: dict[str, str] = field(default_factory=dict)

    def add_settings(self, name: str, values: Mapping[str, Any]) -> None:
        """Add the configuration of a result."""
        if values:
            self.configuration[name] = LIST.sub(_one_line, tomli_w.dumps(values))

    def add_calls(self) -> None:
        """Add the calls that made the results."""
        for call in calls(self.sources.folder):
            self.add_measurement(f"Call of {date_text(call.get('date', NOT_RECORDED))}", call)

    def add_measurement(self, about: str, info: Mapping[str, Any], **more: str) -> None:
        """Add the FACTS of a measurement."""
        always = ("command", "date", "versions", "commit")
        said = {label: fact(info.get(key)) for key, label in FACTS.items() if key in info or key in always}
        self.facts[about] = {**more, **said}

    def add_profile(self, folder: Path) -> None:
        """Add the profile that simulations were made from; say so if it is not there any more."""
        if not holds(folder, PROFILE):
            self.facts["Profile"] = {"folder": f"{path_text(folder)} (not there)"}
            return
        info = read_toml("report", _there(folder, PROFILE))
        digest = {"fingerprint": str(info["fingerprint"])} if "fingerprint" in info else {}
        self.add_measurement("Profile", info, folder=path_text(folder), **digest)

    def add_records(self, folders: Iterable[Path]) -> None:
        """Add the runs in these folders: what all have in common as facts, the rest as a table. None is no error."""
        records = [path for folder in folders for path in _records(folder)]
        rows = [_described(path, read_toml("report", _there(path, RECORD))) for path in records]
        if not rows:
            return
        frame = pd.DataFrame(rows)
        frame = frame[[name for name in frame if (frame[name] != NOT_RECORDED).any()]]
        common = [name for name in frame if name != "run" and frame[name].nunique() == 1]
        self.facts["Records"] = {"runs": str(len(frame)), **{str(name): frame[name].iloc[0] for name in common}}
        self.records = of_frame(frame.drop(columns=common), "Runs")


def fact(value: Any) -> str:
    """Return a value as text: tables as "name value, ...", a missing one as NOT_RECORDED."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or NOT_RECORDED
    return NOT_RECORDED if value is None or value == "" else date_text(value)


def date_text(value: Any) -> str:
    """Return a value as text, and a date of ISO 8601 in UTC as a reader writes it."""
    text = str(value)
    return f"{text[:10]} {text[11:19]} UTC" if UTC.fullmatch(text) else text


def path_text(folder: Path) -> str:
    """Return a path without detours, and from the current folder on if it lies in it."""
    short = os.path.relpath(folder)
    return os.path.normpath(folder) if short.startswith(os.pardir) else short


def seeds_text(used: Iterable[int]) -> str:
    """Return different seeds as text, such as "1 to 4, 9"."""
    ranges: list[list[int]] = []
    for seed in sorted(set(used)):
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1][1:] = [seed]
        else:
            ranges.append([seed])
    shown = [" to ".join(map(str, ends)) for ends in ranges[:MANY]]
    return ", ".join([*shown, *([f"and {len(ranges) - MANY} others"] if len(ranges) > MANY else [])])


def _records(folder: Path) -> list[Path]:
    """Return the folders of the records: the folder itself, or those in it."""
    if holds(folder, RECORD):
        return [folder]
    below = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in below if not path.name.startswith(".") and holds(path, RECORD)]


def _described(folder: Path, info: Mapping[str, Any]) -> dict[str, str]:
    costs, workload = info.get("costs", {}), info.get("workload", {})
    if not isinstance(costs, Mapping) or not isinstance(workload, Mapping):
        raise InputError("report", str(folder / RECORD), "its workload or costs are no tables; repair the record")
    return {
        "run": folder.name,
        "kind": fact(info.get("kind")),
        **{label: fact(info.get(key)) for key, label in FACTS.items()},
        "workload seed": fact(workload.get("seed")),
        "seed of durations": fact(info.get("seed")),
        "profile of": fact(costs.get("date")),
    }


def _one_line(found: re.Match[str]) -> str:
    return f"[{', '.join(line.strip().rstrip(',') for line in found[0].splitlines()[1:-1])}]"


def _there(folder: Path, name: str) -> Path:
    """Return the path of a file, in its place or still to be moved there after a save was killed."""
    return folder / name if (folder / name).is_file() else folder / FINISHED / name
