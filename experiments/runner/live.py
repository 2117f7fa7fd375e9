"""Live runs and calibrations, as the experiments need them. What needs torch is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.profile import Profile
from engines.policy.architecture import Architecture
from engines.record.run import Run
from engines.workload.workload import FixedLength, Workload, make_workload
from experiments.program.progress import Bar, Report

if TYPE_CHECKING:
    from calibrate.stage_costs import Grid
    from engines.live.model.pairs import Pair


def serve(
    architecture: Architecture,
    workload: Workload,
    pair: Pair,
    *,
    max_context: int | None = None,
    info: dict[str, Any] | None = None,
    progress: Report | None = None,
) -> Run:
    """Serve the workload live, with real text as prompts (random tokens for a pair that has no tokenizer). `info`
    is added to the record's. The memory was planned, with a reserve, before the pair was loaded
    (experiments.runner.preflight), so none is asked for again."""
    from engines.live.serving.prompts import prompts_for
    from engines.live.serving.serve import serve_once

    prompted = prompts_for(pair, workload, int(workload.info.get("seed", 0)))
    run = serve_once(architecture, pair, prompted, max_context, progress, reserve=0)
    run.info |= info or {}
    return run


def warm_up(architecture: Architecture, pair: Pair, max_context: int | None = None) -> None:
    """Serve a few requests that are not recorded: the first passes of a process also load and tune libraries."""
    tokens = FixedLength(16 if max_context is None else min(16, max_context // 2))
    serve(architecture, make_workload(4, tokens, tokens, concurrency=4), pair, max_context=max_context)


def grid_of(points: dict[str, list[int]]) -> Grid:
    """The points of a calibration, as calibrate.stage_costs.Grid has them (batches, draft_lengths, contexts,
    prompt_tokens, packed). Raises InputError."""
    from calibrate.stage_costs import Grid

    return Grid(**{name: tuple(values) for name, values in points.items()})


def measure(
    pair: Pair,
    points: dict[str, list[int]],
    budget_s: float,
    command: str,
    unfinished: Path,
    progress: Bar,
) -> Profile:
    """Calibrate the pair on its device over the points that grid_of takes.

    command: what the profile says it was made with. unfinished: a folder for finished parts, so that an
    interrupted calibration goes on. Raises InputError for points that the pair cannot serve.
    """
    from calibrate.measure import calibrate

    return calibrate(pair, grid_of(points), budget_s, command=command, keep=unfinished, progress=progress.part)
