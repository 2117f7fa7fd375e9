"""Lanes that degenerate to textbook queues meet the closed forms.

A lane whose requests want one token each is a single server: prefill is all there is. Every estimate is the mean
of independent replications with fixed seeds, and its 99% confidence interval (Student's t) must hold the closed
form; the same interval must not hold the closed form of a server that is 5% slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from calibrate.contention import NoContention
from engines.policy.architecture import PD, Segment, Step
from engines.policy.request import Request
from engines.policy.segment_shape import SegmentShape
from engines.workload.workload import FixedLength, Workload, make_workload
from sim.acceptance import Independent
from sim.cost_protocols import SegmentCost
from sim.engine import simulate

SERVICE_S = 1.0
SEEDS = range(10, 18)


class Server:
    """Costs of a single server: what a uniform quantile says, all of it in the target's part of prefill."""

    contention = NoContention()
    captured = None

    def __init__(self, service: Callable[[float], float]) -> None:
        self._service = service

    def cost(self, shape: SegmentShape, quantile: float | None) -> SegmentCost:
        assert quantile is not None
        return SegmentCost(self._service(quantile) if shape.segment is Segment.PREFILL_TARGET else 0.0, 1.0)

    def host_s(self, step: Step, batch_size: int, back_to_back: bool, beside: int) -> tuple[float, float]:
        return 0.0, 0.0

    def describe(self) -> dict[str, object]:
        return {}


EXPONENTIAL = Server(lambda u: -SERVICE_S * math.log1p(-u))
DETERMINISTIC = Server(lambda u: SERVICE_S)


def interval(estimates: list[float]) -> tuple[float, float]:
    """99% confidence interval of the mean of independent estimates."""
    half = stats.t.ppf(0.995, len(estimates) - 1) * np.std(estimates, ddof=1) / math.sqrt(len(estimates))
    return float(np.mean(estimates) - half), float(np.mean(estimates) + half)


def check(estimates: list[float], closed_form: Callable[[float], float]) -> None:
    low, high = interval(estimates)
    assert low <= closed_form(SERVICE_S) <= high
    assert not low <= closed_form(1.05 * SERVICE_S) <= high
    assert not low <= closed_form(0.95 * SERVICE_S) <= high


def mean_latencies(server: Server, rate: float, count: int = 4000, warm_up: int = 400) -> list[float]:
    estimates = []
    for seed in SEEDS:
        workload = make_workload(count, FixedLength(1), FixedLength(1), rate=rate, seed=seed)
        requests = simulate(PD, workload, server, Independent(0.5), seed=seed).requests
        estimates.append(float((requests["finish_s"] - requests["arrival_s"])[warm_up:].mean()))
    return estimates


def test_m_m_1() -> None:
    """Poisson arrivals, exponential service: W = 1 / (mu - lambda)."""
    rate = 0.5
    check(mean_latencies(EXPONENTIAL, rate), lambda service: 1 / (1 / service - rate))


def test_a_server_that_is_five_percent_slow_is_noticed() -> None:
    slow = Server(lambda u: 1.05 * SERVICE_S)
    low, high = interval(mean_latencies(slow, 0.5))
    assert not low <= 1.5 * SERVICE_S <= high  # what a server at full speed would give


def test_m_d_1() -> None:
    """Deterministic service: W = s + rho s / (2 (1 - rho)) (Pollaczek-Khinchine)."""
    rate = 0.5
    check(
        mean_latencies(DETERMINISTIC, rate),
        lambda service: service + rate * service**2 / (2 * (1 - rate * service)),
    )


@pytest.mark.parametrize("machines", [5, 10])
def test_machine_repair(machines: int) -> None:
    """A closed system (M/M/1//N): N machines fail after an exponential time and one repairer mends them.

    throughput = mu (1 - p0), p0 = 1 / sum_n N! / (N - n)! (service / uptime)^n.
    """
    uptime_s, count = 4.0, 4000
    estimates = []
    for seed in SEEDS:
        think = np.random.default_rng(seed).exponential(uptime_s, count)
        workload = Workload(tuple(Request(i, 1, 1) for i in range(count)), machines, tuple(think.tolist()))
        finishes = np.sort(simulate(PD, workload, EXPONENTIAL, Independent(0.5), seed=seed).requests["finish_s"])
        estimates.append((count - 401) / float(finishes[-1] - finishes[400]))

    def throughput(service: float) -> float:
        weights = [math.perm(machines, n) * (service / uptime_s) ** n for n in range(machines + 1)]
        return (1 - 1 / sum(weights)) / service

    check(estimates, throughput)
