"""Predict what a live engine would do with a workload: its record, or only its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from calibrate.profile import Profile
from engines.policy.architecture import Architecture
from engines.record.run import Recorder, Run
from engines.record.totals import Totals
from engines.workload.workload import Workload
from sim.acceptance import AcceptanceSource
from sim.conditions import Conditions
from sim.cost_protocols import Costs
from sim.costs import CostModel
from sim.deployment import Deployment, Progress
from sim.routers import ALONE, Fleet


def simulate(
    architecture: Architecture,
    workload: Workload,
    costs: Profile | Costs,
    acceptance: AcceptanceSource,
    *,
    seed: int = 0,
    jitter: bool = True,
    max_context: int | None = None,
    prefill_tokens: int | None = None,
    fleet: Fleet = ALONE,
    info: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Predict what a live engine would do with a workload.

    costs: a profile, or a cost model made of one. jitter: draw each stage's duration from the measured quantiles
    (False: its mean). max_context: tokens of prompt and output together; longer outputs are cut, and prompts that
    leave no room are rejected. prefill_tokens: most tokens of a captured prefill, where the engine captures any; by
    default what engines.policy.captured_sizes.prefill_tokens_of has for the longest prompt. fleet: replicas of the
    engine; the record has all of them, replica r of an architecture with devices 0 to D - 1 on devices r * D to
    r * D + D - 1. info: more plain values for run.toml.

    The same arguments give the same record, byte for byte. Raises InputError for tapes that are shorter than the
    outputs asked for, before anything runs, from the costs for batch outside the measured range and from the device
    for batch too short to be seen on its clock. Raises AssertionError if Little's law does not hold over the run.
    """
    conditions = Conditions(cost_model(costs), acceptance, seed, jitter, max_context, prefill_tokens)
    deployment = Deployment(architecture, workload, conditions, progress, fleet)
    recorder, tapes = Recorder(), dict[int, np.ndarray]()
    deployment.run([recorder] * fleet.replicas, tapes)
    made = described(architecture, workload, conditions, fleet)
    return recorder.run({**made, **deployment.beyond(), **(info or {})}, tapes)


def summarise(
    architecture: Architecture,
    workload: Workload,
    costs: Profile | Costs,
    acceptance: AcceptanceSource,
    *,
    seed: int = 0,
    jitter: bool = True,
    max_context: int | None = None,
    prefill_tokens: int | None = None,
    fleet: Fleet = ALONE,
    progress: Progress | None = None,
    objectives: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Return engines.record.metrics.summary of what `simulate` records with these arguments, without the record.

    The numbers are the same to the last bit. Memory does not grow with the length of the run, apart from 80 bytes per
    request (200 while they are put in order at the end). objectives: a TTFT and a TPOT in seconds, for which to add
    goodput_requests_per_s. Raises what `simulate` does.
    """
    conditions = Conditions(cost_model(costs), acceptance, seed, jitter, max_context, prefill_tokens)
    totals, _ = totalled(architecture, workload, conditions, fleet, progress)
    return totals.summary(asked(architecture, workload, fleet), objectives)


def totalled(
    architecture: Architecture,
    workload: Workload,
    conditions: Conditions,
    fleet: Fleet = ALONE,
    progress: Progress | None = None,
) -> tuple[Totals, dict[str, int]]:
    """Simulate as `simulate` does, but keep only the totals. Returns them, and Deployment.segments."""
    deployment = Deployment(architecture, workload, conditions, progress, fleet)
    totals = Totals(deployment.running)
    deployment.run([totals] * fleet.replicas)
    return totals, deployment.segments


def cost_model(costs: Profile | Costs) -> Costs:
    """Return the cost model of a profile, or the costs as they are."""
    return CostModel(costs) if isinstance(costs, Profile) else costs


def asked(architecture: Architecture, workload: Workload, fleet: Fleet = ALONE) -> dict[str, Any]:
    """Return what a simulated run had to do, as plain values for run.toml."""
    concurrency = {} if workload.concurrency is None else {"concurrency": workload.concurrency}
    return {
        "kind": "simulated",
        "architecture": architecture.to_dict(),
        "workload": {**workload.info, **concurrency},
        **fleet.describe(),
    }


def described(
    architecture: Architecture, workload: Workload, conditions: Conditions, fleet: Fleet = ALONE
) -> dict[str, Any]:
    """Return what a simulated run had to do, and how it was predicted, as plain values for run.toml."""
    limit = conditions.max_context
    return {
        **asked(architecture, workload, fleet),
        "acceptance": conditions.acceptance.describe(),
        "costs": conditions.costs.describe(),
        "seed": conditions.seed,
        "jitter": conditions.jitter,
        **({} if limit is None else {"max_context": limit}),
        "versions": {name: version(name) for name in ("numpy", "simpy")},
    }
