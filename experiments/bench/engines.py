"""Measure the engines under closed loops: throughput, latencies, and whether outputs are exact."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from calibrate.stage_costs import Progress
from engines.live.model.pairs import Pair
from engines.live.serving.engine import Handle, LiveEngine
from engines.live.serving.prompts import prompts_for
from engines.live.serving.serve import serve
from engines.policy.architecture import Architecture, Stage, Step, load_architecture
from engines.record.metrics import summary
from engines.record.roofline import Ceilings
from engines.record.run import Run
from engines.workload.workload import FixedLength, Workload, make_workload
from experiments.bench.exactness import Expected, agreement
from experiments.bench.settings import BenchSettings

PACKED = 4  # prompts per prefill with large limits
MOST_CARRIED = 10  # most clients of an architecture that runs requests to completion; further ones would only wait
WARM_UP_TOKENS = 32
FEWEST_ROUNDS = 1.5  # fewest requests per client, so that all clients are busy for a while
BUDGET_SHARE = 0.4


@dataclass(frozen=True)
class Candidate:
    """An architecture to measure. limits: "default", or "large" if every client fits into a batch."""

    architecture: Architecture
    limits: str
    concurrencies: tuple[int, ...]

    def limit(self, stage: Stage) -> int:
        """Return the batch limit of a stage; that of draft if verify is part of the same step."""
        try:
            lane, step = self.architecture.lane_for(stage)
        except KeyError:
            return self.limit(Stage.DRAFT)
        return lane.steps[step]


def carries(architecture: Architecture) -> bool:
    """Return whether workers run requests to completion."""
    return any(lane.run_to_completion for lane in architecture.lanes)


def for_clients(architecture: Architecture, clients: int) -> Architecture:
    """Return the architecture with a slot and, if requests are batched, a place in every batch for each client."""
    architecture = architecture.replace(slots=clients)
    sizes = dict.fromkeys((Step.DRAFT, Step.VERIFY, Step.DRAFT_VERIFY), clients)
    return architecture if carries(architecture) else architecture.with_batch_limits({**sizes, Step.PREFILL: PACKED})


def candidates(settings: BenchSettings) -> list[Candidate]:
    """Return every architecture with its default limits and, if there are more clients, one with larger limits.

    Larger limits let all clients into a batch and pack prefills. There is always a slot for every client.
    """
    top = max(settings.concurrencies)
    found = []
    for name in settings.architectures:
        architecture = settings.layout(load_architecture(name)).replace(slots=top)
        default = Candidate(architecture, "default", settings.concurrencies)
        if carries(architecture):
            few = tuple(c for c in settings.concurrencies if c <= MOST_CARRIED) or settings.concurrencies[:1]
            found.append(Candidate(architecture, "default", few))
            continue
        found.append(default)
        if top > default.limit(Stage.DRAFT):
            found.append(Candidate(for_clients(architecture, top), "large", settings.concurrencies))
    return found


def measure_engines(
    pair: Pair, settings: BenchSettings, ceilings: Ceilings, expected: Expected, progress: Progress
) -> pd.DataFrame:
    """Return one row per candidate and concurrency.

    Each engine starts once and captures its graphs (start_s). At each concurrency it serves short requests to warm
    up, then a closed loop with as many requests as fit its share of the budget.
    """
    chosen = candidates(settings)
    cells = sum(len(candidate.concurrencies) for candidate in chosen)
    seconds = BUDGET_SHARE * settings.budget_s / cells
    rows: list[dict[str, Any]] = []

    def tell(what: str, fraction: float) -> None:
        progress(what, (len(rows) + fraction) / cells)

    for candidate in chosen:
        _measure(candidate, pair, settings, ceilings, expected, seconds, rows, tell)
        free_memory(pair.device)
    return pd.DataFrame(rows)


def _measure(
    candidate: Candidate, pair: Pair, settings: BenchSettings, ceilings: Ceilings, expected: Expected,
    seconds: float, rows: list[dict[str, Any]], progress: Progress,
) -> None:  # fmt: skip
    name = f"{candidate.architecture.name}, {candidate.limits} limits"
    started = time.perf_counter()
    engine = LiveEngine(
        candidate.architecture, pair, settings.prompt_tokens + settings.output_tokens,
        prefill_tokens=candidate.limit(Stage.PREFILL) * settings.prompt_tokens,
        progress=lambda done, total: progress(f"{name}: graph {done} of {total}", 0.0),
        reserve=0,  # the check before the pair was loaded planned it
    )  # fmt: skip
    with engine:
        start_s = time.perf_counter() - started
        for clients in candidate.concurrencies:
            row = closed_loop_row(engine, clients, settings, ceilings, expected, seconds, progress)
            rows.append({**_described(candidate), "clients": clients, **row, "start_s": start_s})


def closed_loop_row(
    engine: LiveEngine, clients: int, settings: BenchSettings, ceilings: Ceilings, expected: Expected,
    seconds: float, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    what = f"{engine.architecture.name}, {clients} client{'s' * (clients > 1)}"
    progress(f"{what}: warming up", 0.0)
    short = closed_loop(engine.pair, settings, clients, clients, min(WARM_UP_TOKENS, settings.output_tokens))
    rate = _decode_rate(serve(engine, short, complete_tapes=False))
    count = _requests(clients, rate * seconds / settings.output_tokens, settings.requests_per_client)
    workload = closed_loop(engine.pair, settings, clients, count, settings.output_tokens)
    handles: list[Handle] = []
    run = serve(
        engine, workload, lambda done, total: progress(f"{what}: {done} of {total} requests", done / total),
        ceilings, on_end=handles.append, complete_tapes=False,
    )  # fmt: skip
    found = agreement(expected, workload.requests, {h.request.id: h.tokens for h in handles})
    return {**numbers(run), "checked": found.checked, "equal": found.equal, "first_difference": found.first}


def closed_loop(pair: Pair, settings: BenchSettings, clients: int, count: int, output_tokens: int) -> Workload:
    """Make a closed loop of `count` requests. Request i has the same prompt for any count."""
    lengths = FixedLength(settings.prompt_tokens), FixedLength(output_tokens)
    return prompts_for(pair, make_workload(count, *lengths, concurrency=clients, seed=settings.seed), settings.seed)


def _decode_rate(run: Run) -> float:
    """Return the tokens per second emitted between the first start and the last end of a verify."""
    verifies = run.spans[run.spans["segment"] == "verify"]
    emitted = run.steps.loc[run.steps["batch_id"].isin(verifies["batch_id"]), "emitted"].sum()
    return float(emitted) / float(verifies["end_s"].max() - verifies["start_s"].min())


def _requests(clients: int, affordable: float, most_each: int) -> int:
    """Return the number of requests: as many as the budget allows, within the limits per client."""
    return int(np.clip(affordable, max(math.ceil(FEWEST_ROUNDS * clients), 2), most_each * clients))


def _described(candidate: Candidate) -> dict[str, Any]:
    limits = {f"{stage}_limit": candidate.limit(stage) for stage in Stage}
    return {"architecture": candidate.architecture.name, "limits": candidate.limits, **limits}


def numbers(run: Run) -> dict[str, Any]:
    """Return a run as one row: requests, engines.record.metrics.summary, and utilisation."""
    used = run.info["utilisation"]
    shares = {name: used[name] for name in ("nvml_utilisation", "floor_share") if name in used}
    return {"requests": len(run.requests), "finished": len(run.finished), **summary(run), **shares}


def free_memory(device: torch.device) -> None:
    """Free the memory that closed engines have left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
