"""Answer the question of a map: simulate its cells, and write a table and a figure per panel."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from calibrate.profile import Profile
from engines.pairs.permutation import PREFIX, parse_pair
from engines.policy.architecture import Segment
from engines.storage.files import replaced
from experiments.figures import style
from experiments.maps.draw import draw
from experiments.maps.grid import THROUGHPUT, Cell, simulated, verdicts
from experiments.maps.questions import Map, Panel
from experiments.program.progress import Report

BYTES = 2  # of a key or value in bfloat16
ID_BYTES = 8  # of a token id, as PyTorch has them


def run_map(
    chosen: Map, profile: Profile, folder: Path, replicates: int, jobs: int = -1, progress: Report | None = None
) -> dict[str, pd.DataFrame]:
    """Write MAP-PANEL.parquet, .pdf and .png of every panel into the folder. Returns the tables by panel.

    Raises InputError for a profile that does not cover the map, before any work.
    """
    cells: list[Cell] = []
    first: dict[int, int] = {}
    for panel in chosen.panels:
        if id(panel.cells) not in first:
            first[id(panel.cells)] = len(cells)
            cells += panel.cells
    rows = simulated(cells, profile, replicates, jobs, progress)
    tables = {}
    for panel in chosen.panels:
        start = first[id(panel.cells)]
        own = rows[rows["cell"].between(start, start + len(panel.cells) - 1)]
        own = own.assign(cell=own["cell"] - start)
        found = verdicts(panel.cells, own, panel.reference, panel.metric, panel.rival, panel.sides)
        tables[panel.name] = found = _with_notes(panel, found, profile)
        name = f"{chosen.name}-{panel.name}"
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(folder / f"{name}.parquet") as beside:
            found.to_parquet(beside, index=False)
        draw(panel, found, folder, name, source_of(panel, profile, replicates))
    return tables


def source_of(panel: Panel, profile: Profile, replicates: int) -> str:
    """Return where the numbers of a panel come from, in one line."""
    measured = profile.stage_costs.loc[profile.stage_costs["segment"] == Segment.VERIFY, "draft_length"]
    used = {option.architecture.draft_length.maximum for cell in panel.cells for option in cell.options}
    beyond = sorted(k for k in used if not measured.min() <= k <= measured.max())
    note = f"k = {', '.join(map(str, beyond))} extrapolated from k = {measured.min()} to {measured.max()}"
    parts = [f"simulated, {replicates} seeds and calibrations", note if beyond else ""]
    return " · ".join(filter(None, (*parts, style.source(profile_info={**profile.info, "draft_length": None}))))


def _with_notes(panel: Panel, found: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """Add the bytes that go between devices, where PDV has two and the models' shapes are known."""
    devices = [len(option.architecture.devices) for cell in panel.cells for option in cell.options]
    pair = str(profile.info["pair"])
    if max(devices) == 1 or panel.metric != THROUGHPUT or not pair.startswith(PREFIX):
        return found
    shape = parse_pair(pair).draft_shape
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * BYTES
    sent = []
    for cell, row in zip(panel.cells, found.to_dict("records"), strict=True):
        k = cell.options[0].architecture.draft_length.maximum
        ids = ID_BYTES * (2 * k + 1)  # at most, per token: k drafts one way, and k + 1 tokens back
        rate = row["gain"] * row["reference_value"]
        sent.append(rate * (per_token * cell.prompt_tokens / cell.output_tokens + ids) / 1e6)
    return found.assign(handed_over_mb_per_s=sent)
