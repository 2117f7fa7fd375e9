"""Cells: the points of an experiment's grid, each an architecture under a load.

Every run knows its cell, so live and simulated runs can be matched, and a cell finished on disk is not run again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engines.errors import InputError
from engines.policy.architecture import Architecture
from engines.policy.draft_length import FixedDraftLength
from engines.record.run import RUN_FILES, Run
from engines.storage.files import holds
from engines.workload.workload import Workload
from experiments.program.outputs import check_ours, check_output


class Cell(NamedTuple):
    """The place of a run in the grid.

    load: "concurrency" (closed loop; level = clients), "rate" (open loop; level = requests per second) or "trace"
    (level = number of requests). draft_length: "4", "2-8" if adaptive by rule, or "load0-8" if it follows the load.
    """

    architecture: str
    draft_length: str
    load: str
    level: float

    def __str__(self) -> str:
        unit = {"rate": " requests/s", "trace": " requests"}.get(self.load, "")
        return f"{self.architecture}, {self.load} {self.level:g}{unit}, k {self.draft_length}"


CELL_COLUMNS = list(Cell._fields)


def cell_of(run: Run) -> Cell:
    """Return the cell of a live or simulated run. A replay belongs to the cell of the run that it replays."""
    architecture, workload = run.info.get("architecture", {}), run.info.get("workload", {})
    length = architecture.get("draft_length", FixedDraftLength().k)
    if isinstance(length, Mapping):
        length = f"{length.get('follows', '')}{length['minimum']}-{length['maximum']}"
    load, level = "trace", float(len(run.requests))
    for kind in ("concurrency", "rate"):
        if workload.get(kind) is not None:
            load, level = kind, float(workload[kind])
            break
    return Cell(str(architecture.get("name", run.name)), str(length), load, level)


def draft_length_label(architecture: Architecture) -> str:
    """Return "4" for a fixed draft length, "2-8" for an adaptive one, "load0-8" for one that follows the load."""
    return architecture.draft_length.label


def at_once(workload: Workload) -> int:
    """Return the largest number of requests that can be in the system at once."""
    return min(len(workload.requests), workload.concurrency or len(workload.requests))


def check_room(workload: Workload, max_context: int | None) -> None:
    """Raise InputError if every request would be rejected because no prompt leaves room for output."""
    shortest = min(request.prompt_tokens for request in workload.requests)
    if max_context is not None and shortest >= max_context:
        raise InputError("max_context", max_context, f"no prompt fits; the shortest has {shortest} tokens")


def described(architecture: Architecture, workload: Workload) -> dict[str, Any]:
    """Return everything that determines what a run of a cell has to do, as plain values."""
    return {
        "architecture": architecture.to_dict(),
        "requests": [dataclasses.astuple(request) for request in workload.requests],
        "concurrency": workload.concurrency,
        "think_s": workload.think_s,
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a short digest of plain values. It does not depend on their order."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept(folder: Path, digest: str) -> Run | None:
    """Return the run in a folder, or None unless it is complete and was made with exactly these settings."""
    try:
        run = Run.load(folder)
    except InputError:  # missing, damaged or of another version: run it again
        return None
    return run if run.info.get("fingerprint") == digest else None


def cell_folder(root: Path, name: str) -> Path:
    """Return the folder of a cell, after checking that `keep` may write there.

    With links followed, it must lie inside the root and hold nothing but a record that `keep` wrote. Raises
    InputError.
    """
    folder = root / name
    if folder.resolve().parent != root.resolve():
        raise InputError("out", str(folder), f"this folder would lie outside {root}; rename it, or move it")
    check_output("out", folder, RUN_FILES)
    check_ours("out", folder, RUN_FILES, mark="fingerprint", alone=True)
    return folder


def keep(run: Run, folder: Path, digest: str) -> Run:
    """Write a finished run so that `kept` finds it.

    The record is written completely or not at all, so an interrupted experiment never takes half a record for a
    finished cell.
    """
    run.info |= {"name": folder.name, "fingerprint": digest}
    run.save(folder)
    return run


def load_runs(field: str, folder: Path) -> list[Run]:
    """Return the run in a folder, or all runs in its subfolders, sorted by name. Hidden subfolders are skipped.

    Raises InputError if there is no run, or if one is damaged.
    """
    if holds(folder, "run.toml"):
        return [Run.load(folder)]
    if not folder.is_dir():
        raise InputError(field, str(folder), "no such folder; give the folder of a run, or a folder of runs")
    found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and holds(path, "run.toml"))
    if not found:
        raise InputError(field, str(folder), "no run in it; give a folder written by `pdv run` or `pdv simulate`")
    return [Run.load(path) for path in found]
