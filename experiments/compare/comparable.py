"""Check which runs can be compared.

Meaningless comparisons are refused: a live run in place of a simulated one, a different device or pair, or runs of
a cell that are not repeats of one another. A simulation may differ from the live run in other settings, among them a
permutation pair's alphas; these are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from calibrate.profile import Profile
from engines.errors import InputError
from engines.pairs.permutation import without_alpha
from engines.record.run import Run
from experiments.runner.cells import Cell, cell_of

MODES = SIMULATED, REPLAY, BLIND = "simulated", "replay", "blind"
MEASURED_ON = ("device", "pair", "pair_models", "dtype")
REPEATS_MAY_DIFFER = {"seed"}  # repeats may draw different random numbers
REPLAYS_MAY_DIFFER = {"seed", "requests", "lengths"}  # each contains what its live run finished
NAMES_ONLY = {
    "kind",
    "of",
    "count",
    "prompt_seed",
    "trace_digest",
}  # workload settings that are compared elsewhere or do not matter
SAMPLING = {"temperature": 0.0, "seed": 0, "ignore_eos": True}  # defaults for records without these settings


class Sides(NamedTuple):
    """Both sides of a cell. differs: the settings in which they differ."""

    cell: Cell
    lives: list[Run]
    simulations: list[Run]
    differs: tuple[str, ...]


def check_kind(field: str, runs: Iterable[Run], kind: str) -> None:
    """Raise InputError for a run that is not of this kind ("live" or "simulated")."""
    for run in runs:
        if run.info.get("kind") != kind:
            remedy = f"the record has kind = {run.info.get('kind')!r}; give a {kind} run here"
            raise InputError(field, run.name, remedy)


def check_profile(profile: Profile, lives: Iterable[Run]) -> None:
    """Raise InputError if the profile's device, pair or data type differs from a live run's."""
    for live in lives:
        _refuse_others("profile", profile.info, live, "give the profile that matches it")


def sides(lives: Sequence[Run], simulations: Sequence[Run]) -> list[Sides]:
    """Return the cells that both sides have, in order.

    Replays and blind simulations count only if a cell has no other. Raises
    InputError for runs of the wrong kind, for runs whose device, pair or data type differs from the other side's, and
    for runs that are not repeats of the others of their cell.
    """
    check_kind("live", lives, "live")
    check_kind("simulated", simulations, "simulated")
    live_cells, simulated_cells = by_cell(lives), by_cell(simulations)
    simulated_cells = {cell: own_of(runs) for cell, runs in simulated_cells.items()}
    for field, cells in (("live", live_cells), ("simulated", simulated_cells)):
        for cell, runs in cells.items():
            _check_repeats(field, cell, runs)
    return [
        Sides(cell, live_cells[cell], simulated_cells[cell], _differ(live_cells[cell], simulated_cells[cell]))
        for cell in sorted(live_cells)
        if cell in simulated_cells
    ]


def differences(live: Run, simulated: Run) -> list[str]:
    """Return the names of the settings in which a simulation differs from the live run.

    Raises InputError for a different device, pair or data type.
    """
    _refuse_others("simulated", _measured_on(simulated), live, "simulate from the profile that matches it")
    return _differing(live, simulated)


def mode_of(run: Run) -> str:
    """Return how a simulated run was made, one of MODES.

    A replay has the requests and the acceptance of one live run, a blind one only the description of its workload and
    fitted acceptance.
    """
    return REPLAY if "replays" in run.info else BLIND if run.info.get("blind") else SIMULATED


def own_of(simulations: Sequence[Run]) -> list[Run]:
    """Return the simulations that are neither replays nor blind; else the replays, else the blind ones."""
    for mode in MODES:
        if found := [run for run in simulations if mode_of(run) == mode]:
            return found
    return []


def by_cell(runs: Sequence[Run]) -> dict[Cell, list[Run]]:
    """Return the runs of each cell, in the order given."""
    cells: dict[Cell, list[Run]] = {}
    for run in runs:
        cells.setdefault(cell_of(run), []).append(run)
    return cells


def union(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Return each name once, in order of first appearance."""
    return tuple(dict.fromkeys(name for some in names for name in some))


def _differ(lives: Sequence[Run], simulations: Sequence[Run]) -> tuple[str, ...]:
    """Compare runs of the same seed. A run whose seed the other side lacks is compared with all of its runs."""
    seeds = [{_seed(run) for run in runs} for runs in (lives, simulations)]
    common = set.intersection(*seeds)
    return union(
        differences(live, simulated)
        for live in lives
        for simulated in simulations
        if _seed(live) == _seed(simulated) or not {_seed(live), _seed(simulated)} <= common
    )


def _seed(run: Run) -> Any:
    return run.info.get("workload", {}).get("seed")


def _check_repeats(field: str, cell: Cell, runs: Sequence[Run]) -> None:
    first = runs[0]
    for other in runs[1:]:
        allowed = REPLAYS_MAY_DIFFER if "replays" in first.info else REPEATS_MAY_DIFFER
        names = union([_differing(first, other), _changed(_predicted(first), _predicted(other))])
        differing = [name for name in names if name not in allowed]
        if differing:
            remedy = f"both are {cell}, but not repeats: they differ in {', '.join(differing)}; compare them apart"
            raise InputError(field, f"{first.name}, {other.name}", remedy)


def _refuse_others(what: str, info: Mapping[str, Any], live: Run, remedy: str) -> None:
    measured = _measured_on(live)
    pairs = str(info.get("pair")), str(measured["pair"])
    other_alphas = pairs[0] != pairs[1] and without_alpha(pairs[0]) == without_alpha(pairs[1])
    for name in MEASURED_ON:
        other, own = info.get(name), measured[name]
        if other_alphas and name in ("pair", "pair_models"):
            continue  # the same stages at the same cost
        if None not in (other, own) and other != own:
            raise InputError(f"{what} {name}", other, f"the live run {live.name} has {own!r}; {remedy}")


def _measured_on(run: Run) -> dict[str, Any]:
    """Return device, pair, models and data type: of the run if it is live, else of its profile."""
    info = run.info if run.info.get("kind") == "live" else run.info.get("costs", {})
    return {name: info.get(name) for name in MEASURED_ON}


def _predicted(run: Run) -> dict[str, Any]:
    """Return what else determines a simulation, apart from seeds."""
    return {"profile": run.info.get("costs"), **{name: run.info.get(name) for name in ("acceptance", "jitter")}}


def _differing(one: Run, other: Run) -> list[str]:
    names = _changed(_settings(one), _settings(other))
    if None in (_measured_on(one)["pair_models"], _measured_on(other)["pair_models"]):
        names = [name for name in names if name != "pair_models"]  # older records and profiles lack them
    digests = [run.info.get("workload", {}).get("trace_digest") for run in (one, other)]
    if None not in digests and digests[0] != digests[1]:
        names.append("trace")
    if not names and not np.array_equal(_asked(one), _asked(other)):
        names.append("lengths")
    return list(union([names]))


def _asked(run: Run) -> np.ndarray:
    """Return what each request asked for, one row per request."""
    return run.requests.sort_values("request")[["request", "prompt_tokens", "max_tokens"]].to_numpy()


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in union([one, other]) if one.get(name) != other.get(name)]


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings of a run as plain values by name."""
    workload = {**SAMPLING, **run.info.get("workload", {})}
    return {
        **_measured_on(run),
        "requests": len(run.requests),
        **{name: value for name, value in workload.items() if name not in NAMES_ONLY},
        "max_context": run.info.get("max_context"),
        "replicas": run.info.get("replicas", 1),
        **_layout(run.info.get("architecture", {})),
    }


def _layout(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return an architecture's settings by name; those of a lane and its batch limits as lanes.LANE.NAME."""
    out = {name: value for name, value in architecture.items() if name not in ("name", "lanes")}
    out["architecture"] = architecture.get("name")
    for lane in architecture.get("lanes", ()):
        where = f"lanes.{lane.get('name')}"
        out |= {f"{where}.{name}": value for name, value in lane.items() if name not in ("name", "steps")}
        out |= {f"{where}.{step}": limit for step, limit in lane.get("steps", {}).items()}
    return out
