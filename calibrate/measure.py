"""A whole calibration: stage costs, contention, host time and acceptance of a pair on a device -> a Profile."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.acceptance import acceptance_table
from calibrate.measure_contention import default_groups, measure_contention, shapes_by_lane, widths_of
from calibrate.parts import Parts
from calibrate.profile import HOST_COLUMNS, Profile
from calibrate.stage_costs import Grid, Progress, measure_stage_costs
from engines.live.model.graphs import BATCHES, sizes_up_to
from engines.live.model.pairs import Pair
from engines.live.serving.engine import LiveEngine
from engines.live.serving.prompts import prompts_for
from engines.live.serving.serve import device_name, serve
from engines.policy.architecture import BASELINE, PD, PDV, Architecture, Step
from engines.policy.context import context_of
from engines.policy.draft_length import FixedDraftLength
from engines.record.run import Run
from engines.workload.workload import FixedLength, make_workload

SHARES = {"stage_costs": 0.45, "contention": 0.4, "live": 0.15}  # of the time budget
REQUESTS, OUTPUT_TOKENS = 12, 64  # of the live run that acceptance and host times are read from
HOST_REQUESTS = 6  # of those that host times alone are read from


def calibrate(
    pair: Pair,
    grid: Grid | None = None,
    budget_s: float = 120.0,
    *,
    seed: int = 0,
    command: str = "calibrate.measure.calibrate",
    progress: Progress = lambda what, fraction: None,
    keep: Path | None = None,
) -> Profile:
    """Measure a pair on its device.

    budget_s: seconds that the timings may take, about; the fewest repeats are made whatever it is. keep: a
    folder for the parts as they are finished; an interrupted calibration with the same settings goes on there, and
    once the profile is saved, calibrate.parts.remove_parts ends that. Raises InputError for a grid that the pair
    cannot serve, and for a folder that was not made for parts.
    """
    grid = grid or Grid()
    grid.check(pair.max_context)
    device, dtype = device_name(pair.device), str(pair.dtype).removeprefix("torch.")
    settings = {"pair": pair.name, "models": pair.origins.key(), "device": device, "dtype": dtype}
    parts = Parts(keep, {**settings, "grid": asdict(grid), "budget_s": budget_s, "seed": seed})
    costs = parts.get(
        "stage_costs",
        lambda: measure_stage_costs(pair, grid, budget_s * SHARES["stage_costs"], _scaled(progress, "stage_costs")),
    )
    contention = parts.get(
        "contention",
        lambda: measure_contention(
            pair, grid, default_groups(grid), budget_s * SHARES["contention"], _scaled(progress, "contention")
        ),
    )
    runs = _live_runs(pair, grid, seed, _scaled(progress, "live"))
    tapes = runs[0].tapes
    k = grid.draft_lengths[-1]
    info = {
        "device": device,
        "pair": pair.name,
        "pair_models": pair.origins.describe(),
        "dtype": dtype,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {name: version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
        "max_context": pair.max_context,
        "draft_length": k,
    }
    if pair.device.type == "cuda":  # where an engine pads batches to the sizes it has captured
        info["batch_buckets"] = sizes_up_to(grid.batches[-1], BATCHES)
    return Profile(info, costs, host_times(runs), contention, acceptance_table(tapes.values(), k), tapes)


def footprint(grid: Grid) -> tuple[Architecture, int]:
    """An architecture that takes as much memory as a calibration at its fullest, and the tokens of its slots (for
    engines.live.serving.memory.plan_slots). Its lanes run what is measured together; a slot belongs to one of
    them."""
    together = sum(widths_of(shapes_by_lane(default_groups(grid))))
    largest = grid.batches[-1]
    lanes = PDV.with_batch_limits({Step.DRAFT: largest, Step.VERIFY: largest, Step.PREFILL: 1})
    slots, length = max(together, grid.packed[-1]), FixedDraftLength(grid.draft_lengths[-1])
    return lanes.replace(slots=slots, draft_length=length), grid.longest + 1


def _scaled(progress: Progress, part: str) -> Progress:
    names = list(SHARES)
    before = sum(SHARES[name] for name in names[: names.index(part)])
    return lambda what, fraction: progress(what, before + SHARES[part] * fraction)


def _live_runs(pair: Pair, grid: Grid, seed: int, progress: Progress) -> list[Run]:
    """With the largest draft length, and so that nothing contends: lanes apart and one client, where every batch is
    handed over to another thread; the same with draft and verify as one step; and one worker that two clients keep
    going from each step to the next, and from a request to the next one's prefill."""
    prompt = min(128, grid.prompt_tokens[-1], pair.max_context // 2)
    output = min(OUTPUT_TOKENS, context_of(pair.max_context, grid.draft_lengths[-1]) - prompt)
    (worker,) = BASELINE.lanes
    alone = BASELINE.replace(lanes=(replace(worker, workers=1),))
    loads = [(PDV.replace(hybrid_at_or_below=0), REQUESTS, 1), (PD, HOST_REQUESTS, 1), (alone, HOST_REQUESTS, 2)]
    all_requests = sum(count for _, count, _ in loads)
    runs: list[Run] = []

    def tell(done: int, total: int) -> None:
        done += sum(len(run.requests) for run in runs)
        progress(f"live: {done} of {all_requests} requests", done / all_requests)

    for layout, count, clients in loads:
        workload = make_workload(count, FixedLength(prompt), FixedLength(output), concurrency=clients, seed=seed)
        architecture = layout.replace(slots=1, draft_length=FixedDraftLength(grid.draft_lengths[-1]))
        architecture = architecture.with_batch_limits(
            {step: 1 for lane in layout.lanes for step in lane.steps}  # no more is ever captured
        )
        with LiveEngine(architecture, pair, prompt + output) as engine:
            runs.append(serve(engine, prompts_for(pair, workload, seed), tell))
    return runs


def host_times(runs: Sequence[Run]) -> pd.DataFrame:
    """The table `host_times` of a profile: medians over the batches of all runs, apart for workers that came straight
    from the batch before. Where one of the two was never seen, it is taken to be as long as the other."""
    rows = []
    for run in runs:
        spans = run.spans.assign(device_s=run.spans["end_s"] - run.spans["start_s"])
        batches = spans.groupby("batch_id").agg(
            step=("step", "first"), back_to_back=("back_to_back", "first"), device_s=("device_s", "sum"),
            start_s=("dispatched_s", "first"), end_s=("completed_s", "first"),
        )  # fmt: skip
        kind = np.where(batches["back_to_back"], "back_to_back_ms", "wake_up_ms")
        host_ms = 1e3 * (batches["end_s"] - batches["start_s"] - batches["device_s"])
        rows.append(pd.DataFrame({"step": batches["step"], "kind": kind, "host_ms": host_ms.clip(lower=0.0)}))
    table = pd.concat(rows).pivot_table(index="step", columns="kind", values="host_ms", aggfunc="median")
    table = table.reindex(columns=HOST_COLUMNS[1:])
    wake_up, back_to_back = (table[column] for column in HOST_COLUMNS[1:])
    return pd.DataFrame(
        {"wake_up_ms": wake_up.fillna(back_to_back), "back_to_back_ms": back_to_back.fillna(wake_up)}
    ).reset_index()
