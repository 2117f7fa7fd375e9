"""A whole calibration: stage costs, contention, host time and acceptance of a pair on a device -> a Profile."""

from __future__ import annotations

import datetime
from dataclasses import asdict, replace
from pathlib import Path

from calibrate.acceptance import acceptance_table
from calibrate.host_times import host_times
from calibrate.measure_contention import (
    default_groups,
    longest_of,
    measure_contention,
    middle,
    shapes_by_lane,
    spaced,
    widths_of,
)
from calibrate.parts import Parts
from calibrate.profile import Profile
from calibrate.stage_costs import Grid, Progress, measure_stage_costs
from engines.live.model.pairs import Pair
from engines.live.serving.engine import LiveEngine
from engines.live.serving.prompts import prompts_for
from engines.live.serving.serve import device_name, library_versions, serve
from engines.policy.architecture import BASELINE, PD, PDV, TARGET_ONLY, Architecture, Step
from engines.policy.captured_sizes import BATCHES, TOKENS
from engines.policy.context import context_of
from engines.policy.draft_length import FixedDraftLength
from engines.record.run import Run
from engines.workload.workload import FixedLength, UniformLength, make_workload

SHARES = {"stage_costs": 0.4, "contention": 0.5, "live": 0.1}  # of the time budget
REQUESTS, PER_CLIENT = 12, 4  # of each live run, at least
OUTPUT_TOKENS = 96  # of the longest request of a live run


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
    if pair.device.type == "cuda":
        grid = grid.with_captured_sizes()
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
    tapes = max(runs, key=lambda run: len(run.requests)).tapes
    k = grid.draft_lengths[-1]
    info = {
        "device": device,
        "pair": pair.name,
        "pair_models": pair.origins.describe(),
        "dtype": dtype,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": library_versions(),
        "max_context": pair.max_context,
        "draft_length": k,
    }
    if pair.device.type == "cuda":  # where an engine pads batches to the sizes it has captured
        info["batch_buckets"], info["token_buckets"] = list(BATCHES), list(TOKENS)
    return Profile(info, costs, host_times(runs), contention, acceptance_table(tapes.values(), k), tapes)


def footprint(grid: Grid) -> tuple[Architecture, int]:
    """An architecture that takes as much memory as a calibration at its fullest, and the tokens of its slots (for
    engines.live.serving.memory.plan_slots). Its lanes run what is measured together; a slot belongs to one of
    them."""
    groups, largest = default_groups(grid), grid.batches[-1]
    needed = [  # slots and tokens, part by part
        (max(largest, grid.packed[-1]), grid.longest),
        (sum(widths_of(shapes_by_lane(groups))), longest_of(groups)),
        (largest, _prompt_of(grid, grid.longest) + OUTPUT_TOKENS),
    ]
    slots, longest = max(needed, key=lambda part: part[0] * part[1])
    lanes = PDV.with_batch_limits({Step.DRAFT: largest, Step.VERIFY: largest, Step.PREFILL: grid.packed[-1]})
    return lanes.replace(slots=slots, draft_length=FixedDraftLength(grid.draft_lengths[-1])), longest + 1


def _scaled(progress: Progress, part: str) -> Progress:
    names = list(SHARES)
    before = sum(SHARES[name] for name in names[: names.index(part)])
    return lambda what, fraction: progress(what, before + SHARES[part] * fraction)


def plan(grid: Grid, budget_s: float) -> list[tuple[str, str, float]]:
    """Return what a calibration over this grid would do: part, what is measured, and about how many seconds.

    The seconds of the live runs, like capturing on a GPU, depend on the device; their share of the budget is a guess.
    """
    clients = [n for _, cells in _live_loads(grid) for n in cells]
    what = {
        "stage_costs": f"{len(grid.points())} segments alone, in {len(grid.steps())} steps",
        "contention": f"{len(default_groups(grid))} groups of segments that run together",
        "live": f"{sum(map(_requests_of, clients))} requests in {len(clients)} live runs",
    }
    return [(part, what[part], budget_s * share) for part, share in SHARES.items()]


def _live_loads(grid: Grid) -> list[tuple[Architecture, list[int]]]:
    """Return the architectures of the live runs, each with its numbers of clients."""
    (worker,) = BASELINE.lanes
    alone = BASELINE.replace(lanes=(replace(worker, workers=1),))
    crowds = [n for n in spaced(grid.batches, 3) if n > 1] or [2]
    apart = PDV.replace(hybrid_at_or_below=0)
    loads = [(apart, [1, *crowds]), (PD, [1, *crowds]), (alone, [2]), (BASELINE, [worker.workers])]
    return [*loads, (TARGET_ONLY, [1, *crowds])] if 0 in grid.draft_lengths else loads


def _requests_of(clients: int) -> int:
    return max(REQUESTS, PER_CLIENT * clients)


def _live_runs(pair: Pair, grid: Grid, seed: int, progress: Progress) -> list[Run]:
    """Serve loads for acceptance (read from the one with most requests) and host times: with lanes apart, with draft
    and verify as one step, with one worker that two clients keep going from each step to the next, and with workers
    that share a stream; without drafts if they may be off.

    One client meets no contention; several, and as many as the largest batch, meet what lanes cost one another on
    the host. Requests of unequal lengths end one by one, so that prefills meet the other lanes at work."""
    prompt, most, k = _prompt_of(grid, pair.max_context), grid.batches[-1], grid.draft_lengths[-1]
    output = min(OUTPUT_TOKENS, context_of(pair.max_context, k) - prompt)
    lengths = FixedLength(prompt), UniformLength(min(output, max(output // 3, k + 2)), output)
    loads = _live_loads(grid)
    all_requests = sum(_requests_of(n) for _, cells in loads for n in cells)
    runs: list[Run] = []

    def tell(done: int, total: int) -> None:
        done += sum(len(run.requests) for run in runs)
        progress(f"live: {done} of {all_requests} requests", done / all_requests)

    limits = {Step.PREFILL: grid.packed[-1], Step.DRAFT: most, Step.VERIFY: most, Step.DRAFT_VERIFY: most}
    for layout, cells in loads:
        slots = max(cells)
        steps = {step for lane in layout.lanes for step in lane.steps if not lane.run_to_completion}
        architecture = layout.with_batch_limits({step: min(limits[step], slots) for step in steps})
        if layout is not TARGET_ONLY:
            architecture = architecture.replace(draft_length=FixedDraftLength(middle(grid.drafting)))
        with LiveEngine(architecture.replace(slots=slots), pair, prompt + output) as engine:
            for clients in cells:
                workload = make_workload(_requests_of(clients), *lengths, concurrency=clients, seed=seed)
                runs.append(serve(engine, prompts_for(pair, workload, seed), tell))
    return runs


def _prompt_of(grid: Grid, positions: int) -> int:
    """Prompt tokens of the live runs: a full packed prefill of them was measured."""
    return max(1, min(128, grid.prompt_tokens[-1] // grid.packed[-1], positions // 2))
