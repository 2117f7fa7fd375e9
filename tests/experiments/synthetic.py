"""Runs and a profile that nobody measured, for tests: a made-up device with plain formulas for its times."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from calibrate.profile import ACCEPTANCE_COLUMNS, CONTENTION_COLUMNS, HOST_COLUMNS, STAGE_COST_COLUMNS, Profile
from engines.policy.architecture import ARCHITECTURES, Architecture, Segment, Step
from engines.record.run import Run
from engines.workload.workload import UniformLength, Workload, make_workload
from sim.acceptance import Independent
from sim.engine import simulate

BATCHES = (1, 2, 4, 8, 12)
INFO = {
    "device": "made-up device",
    "pair": "made-up pair",
    "dtype": "float32",
    "date": "2026-01-02",
    "command": "none",
    "versions": {"numpy": "0"},
    "max_context": 512,
    "draft_length": 4,
}


def profile(slower: float = 1.0) -> Profile:
    """k = 4 and contexts 32 to 256; all times `slower` times as long. Two streams run at 0.6 of their speed."""
    costs: list[tuple[Any, ...]] = []
    for tokens in (16, 64, 128):
        for segment, per_token in ((Segment.PREFILL_DRAFT, 0.01), (Segment.PREFILL_TARGET, 0.05)):
            costs.append(_cost(segment, 1, 0, tokens, 0, slower * (2 + per_token * tokens)))
    for batch in BATCHES:
        for context in (32, 256):
            part = 1 + 0.1 * batch + 0.001 * context
            costs.append(_cost(Segment.DRAFT, batch, 4, 4 * batch, context, slower * 3 * part))
            costs.append(_cost(Segment.VERIFY, batch, 4, 5 * batch, context, slower * 4 * part))
    contention = []
    for batch in (1, 4):
        group = f"draft{batch}+verify{batch}"
        for segment, rate in ((Segment.DRAFT, 0.5 + 0.01 * batch), (Segment.VERIFY, 0.7 - 0.01 * batch)):
            contention.append((group, segment, batch, 4, 5 * batch, 64, 4.0 + batch, 10, rate))
    for position, segment in enumerate((Segment.DRAFT, Segment.VERIFY, Segment.PREFILL_TARGET)):
        contention.append(("draft4+verify4+prefill64", segment, 4, 4, 20, 64, 6.0, 10, 0.35 + 0.05 * position))
    acceptance = [(i, 0.7**i, 20, 0.7, 0.1) for i in (1, 2, 3, 4)]
    return Profile(
        dict(INFO),
        pd.DataFrame(costs, columns=STAGE_COST_COLUMNS),
        pd.DataFrame([(str(step), 0.1, 0.0, 0.0, 0.0, 0.1, 0.0) for step in Step], columns=HOST_COLUMNS),
        pd.DataFrame(contention, columns=CONTENTION_COLUMNS),
        pd.DataFrame(acceptance, columns=ACCEPTANCE_COLUMNS),
    )


def _cost(segment: Segment, batch: int, k: int, tokens: int, context: int, mean_ms: float) -> tuple[Any, ...]:
    quantiles = [mean_ms * factor for factor in (0.9, 0.95, 1.0, 1.05, 1.1)]
    return (str(segment), batch, k, tokens, context, 10, 20, *quantiles, mean_ms)


def workload(count: int = 12, concurrency: int | None = 3, rate: float | None = None, seed: int = 1) -> Workload:
    """A closed loop of three clients, unless told otherwise."""
    lengths = UniformLength(16, 48)
    return make_workload(count, lengths, lengths, concurrency=None if rate else concurrency, rate=rate, seed=seed)


def simulated(
    architecture: str | Architecture = "pdv",
    slower: float = 1.0,
    name: str = "",
    seed: int = 0,
    asked: Workload | None = None,
    **load: Any,
) -> Run:
    """A simulated run of a workload, by default `workload(**load)`; alpha is 0.7."""
    layout = ARCHITECTURES[architecture] if isinstance(architecture, str) else architecture
    return simulate(
        layout, asked or workload(**load), profile(slower), Independent(0.7), seed=seed,
        max_context=INFO["max_context"], info={"name": name or layout.name},
    )  # fmt: skip


def live(
    architecture: str | Architecture = "pdv", name: str = "live", seed: int = 7, slower: float = 1.1, **load: Any
) -> Run:
    """A stand-in for a live run: simulated on a device that is 10 % slower, with solo times unknown, as live ones
    are."""
    run = simulated(architecture, slower, name, seed, **load)
    facts = {key: INFO[key] for key in ("device", "pair", "dtype", "date", "max_context")}
    return dataclasses.replace(run, info={**run.info, **facts, "kind": "live"}, spans=run.spans.assign(solo_s=np.nan))


def stretched(run: Run, factor: float, name: str, **info: object) -> Run:
    """The run with all its times multiplied."""
    times = [column for column in run.requests if column.endswith("_s")]
    spans = [column for column in run.spans if column.endswith("_s")]
    steps = ["admission_s", "queue_s", "permit_s"]
    return dataclasses.replace(
        run,
        info={**run.info, "name": name, **info},
        requests=run.requests.assign(**{c: run.requests[c] * factor for c in times}),
        spans=run.spans.assign(**{c: run.spans[c] * factor for c in spans}),
        steps=run.steps.assign(**{c: run.steps[c] * factor for c in steps}),
    )


def as_live(run: Run, factor: float = 1.0, name: str = "live", **info: object) -> Run:
    """The run as if it had been live, with all its times multiplied."""
    facts = {key: INFO[key] for key in ("device", "pair", "dtype", "date")}
    return stretched(run, factor, name, **{**facts, "kind": "live", **info})
