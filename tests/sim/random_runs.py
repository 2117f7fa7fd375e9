"""Random simulated runs, and digests of their records: what a change that is only about speed must not change.

`python -m tests.sim.random_runs 100` prints one digest per run.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.contention import NoContention
from calibrate.profile import Profile
from engines.policy.architecture import BASELINE, PD, PDV, Architecture, Lane, Stage, Step
from engines.policy.draft_length import AdaptiveDraftLength, FixedDraftLength
from engines.record.run import Run
from engines.workload.workload import FixedLength, LogNormalLength, UniformLength, Workload, make_workload
from sim.acceptance import AcceptanceSource, Independent, Markov, PerPosition, PerRequestSpread, Tapes
from sim.costs import CostModel
from sim.engine import simulate
from tests.calibrate.profiles import made_up

H100 = Path(__file__).parents[2] / "results/h100/fidelity/profile"
MIXED = Architecture(
    "prefill-drafts", (Lane("prefill", {Step.PREFILL: 2, Step.DRAFT: 6}), Lane("verify", {Step.VERIFY: 6}, stream=1))
)
CARRYING = Architecture(
    "carried-decode",
    (
        Lane("prefill", {Step.PREFILL: 4}),
        Lane("decode", {Step.DRAFT: 1, Step.VERIFY: 1}, workers=3, stream=1, run_to_completion=True),
    ),
)


@cache
def costs(kind: str) -> CostModel:
    """A cost model: h100 pads to captured sizes, made up pads nothing, alone has no contention either."""
    if kind == "h100":
        return CostModel(Profile.load(H100), extrapolate=True)
    return CostModel(made_up(), extrapolate=True, contention=NoContention() if kind == "alone" else None)


def architecture(draw: random.Random, prompts: int) -> Architecture:
    """One of the layouts, with its limits, workers, streams and rules drawn. prompts: most of a prefill."""
    chosen = draw.choice([BASELINE, PD, PD, PDV, PDV, PDV, MIXED, CARRYING])
    lanes = []
    for lane in chosen.lanes:
        limits = {step: 1 if lane.run_to_completion else draw.choice([1, 2, 6, 12, 64]) for step in lane.steps}
        if Step.PREFILL in limits:
            limits[Step.PREFILL] = min(limits[Step.PREFILL], prompts)
        lanes.append(replace(lane, steps=limits, workers=draw.choice([1, 1, lane.workers, 2, 5])))
    if draw.random() < 0.1:
        lanes = [replace(lane, stream=0) for lane in lanes]
    hybrid = draw.choice([0, 0, 1, 3]) if chosen in (PDV, MIXED) else 0
    if draw.random() < 0.1 and not hybrid:
        lanes = [replace(lane, device=place) for place, lane in enumerate(lanes)]
    priority = draw.choice([(), tuple(draw.sample(list(Stage), 3))])
    separate = priority and chosen is not PD
    return chosen.replace(
        lanes=tuple(lanes),
        priority=priority,
        verify_first_above=draw.choice([None, 0, 2]) if separate else None,
        hybrid_at_or_below=hybrid,
        draft_length=draw.choice([FixedDraftLength(2), FixedDraftLength(4), AdaptiveDraftLength()]),
        slots=draw.choice([2, 8, 64, 64]),
        permits=draw.choice([None, None, None, 1, 2]),
        queue_limit=draw.choice([None, None, None, 5]),
    )


def workload(draw: random.Random) -> Workload:
    """A closed loop, with or without think times, or an open one."""
    prompts = draw.choice([FixedLength(128), UniformLength(20, 400), LogNormalLength(200, 0.6, 10, 1500)])
    outputs = draw.choice([FixedLength(40), UniformLength(1, 90), UniformLength(1, 300)])
    seed, count = draw.randrange(100), draw.choice([30, 120])
    if draw.random() < 0.6:
        clients, think_s = draw.choice([1, 5, 20, 64, 150]), draw.choice([0.0, 0.0, 0.05])
        return make_workload(count, prompts, outputs, concurrency=clients, mean_think_s=think_s, seed=seed)
    process = draw.choice(["poisson", "gamma", "fixed"])
    cv = 3.0 if process == "gamma" else None
    return make_workload(
        count, prompts, outputs, rate=draw.choice([0.5, 4.0, 40.0]), process=process, cv=cv, seed=seed
    )


def acceptance(draw: random.Random, load: Workload) -> AcceptanceSource:
    """A source of every kind, among them tapes that are shorter than what is asked for."""
    tapes = {
        request.id: np.array([-1, *(draw.choice([-1, 0, 1, 1, 1]) for _ in range(request.max_tokens - 1))], np.int8)
        for request in load.requests
    }
    ended = frozenset(request for request in tapes if request % 3 == 0)
    short = {request: tape[:7] if request in ended else tape for request, tape in tapes.items()}
    rates = PerPosition((0.8, 0.6, 0.3))
    return draw.choice(
        [
            Independent(0.7),
            Independent(1.0),
            rates,
            PerRequestSpread(0.7, 0.2),
            Markov(0.9, 0.4),
            Tapes(short, 0.5, ended),
        ]
    )


def random_run(seed: int, predict: Callable[..., Any] = simulate) -> Any:
    """Simulate whatever this seed stands for. predict: simulate, or what takes the same arguments."""
    draw = random.Random(seed)
    load, kind = workload(draw), draw.choice(["h100", "h100", "made up", "made up", "alone"])
    return predict(
        architecture(draw, 64 if kind == "h100" else 1),  # what was made up has no prefill of two prompts
        load,
        costs(kind),
        acceptance(draw, load),
        seed=draw.randrange(1000),
        jitter=draw.random() < 0.8,
        max_context=draw.choice([None, None, 220]),
    )


def digest(run: Run) -> str:
    """Digest the tables and tapes of a record, column by column, with their types."""
    found = hashlib.sha256()
    for table in (run.requests, run.steps, run.spans):
        for name in table:
            values = table[name].to_numpy()
            data = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
            found.update(f"{name} {table[name].dtype} {len(values)} ".encode() + data)
    for request, tape in run.tapes.items():
        found.update(f"{request} {tape.dtype} ".encode() + tape.tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        print(number, digest(random_run(number)))
