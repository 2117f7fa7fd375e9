"""Workloads, costs and runs that the tests of the simulator share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibrate.contention import NoContention
from engines.policy.architecture import Architecture
from engines.record.run import Run
from engines.workload.workload import UniformLength, Workload, make_workload
from sim.acceptance import Independent
from sim.costs import CostModel
from sim.engine import simulate
from tests.calibrate.profiles import made_up

COSTS = CostModel(made_up())


QUIET = CostModel(made_up(), contention=NoContention())


CLOSED = make_workload(60, UniformLength(20, 400), UniformLength(1, 60), concurrency=5, seed=1)


OPEN = make_workload(60, UniformLength(20, 400), UniformLength(1, 60), rate=8.0, seed=1)


def run(architecture: Architecture, workload: Workload = CLOSED, costs: Any = COSTS, **options: Any) -> Run:
    return simulate(architecture, workload, costs, options.pop("acceptance", Independent(0.7)), **options)


def same(one: Run, other: Run) -> bool:
    return all(getattr(one, t).equals(getattr(other, t)) for t in ("requests", "steps", "spans"))


def thinking(seconds: float) -> Workload:
    return replace(CLOSED, think_s=(seconds,) * len(CLOSED.requests))


SURE = Independent(1.0)
