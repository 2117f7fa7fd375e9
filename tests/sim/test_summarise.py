"""Metrics without a record: the same numbers, to the last bit, and no memory for what is not asked for."""

from __future__ import annotations

import tracemalloc
from math import fsum, isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.policy.architecture import PD
from engines.record.exact_sum import ExactSum
from engines.record.metrics import goodput, request_times, summary
from engines.workload.workload import FixedLength, make_workload
from sim.acceptance import Independent
from sim.costs import CostModel
from sim.engine import simulate, summarise
from tests.calibrate.profiles import made_up
from tests.sim.random_runs import random_run


@pytest.mark.parametrize("chunk", [1, 7, 1024])
@pytest.mark.parametrize("seeds", [range(0, 10), range(10, 20), range(20, 30)], ids=str)
def test_the_same_numbers_as_the_record(seeds: range, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.record.totals.CHUNK", chunk)
    for seed in seeds:
        expected, found = summary(random_run(seed)), random_run(seed, summarise)
        assert list(found) == list(expected), seed
        wrong = {name: (found[name], value) for name, value in expected.items() if not _same(found[name], value)}
        assert not wrong, seed


def _same(one: float, other: float) -> bool:
    return one == other or (isnan(one) and isnan(other))


@given(st.lists(st.lists(st.floats(-1e300, 1e300, allow_nan=False), max_size=8), max_size=8))
def test_a_sum_in_parts_is_exact(parts: list[list[float]]) -> None:
    total = ExactSum()
    for part in parts:
        total.add(part)
    assert total.total == fsum(value for part in parts for value in part)


def test_memory_does_not_grow_with_the_length_of_a_run() -> None:
    """Ten times as many tokens take the same memory; ten times as many requests 250 bytes each at most."""
    costs = CostModel(made_up(), extrapolate=True)

    def peak(requests: int, tokens: int) -> int:
        load = make_workload(requests, FixedLength(20), FixedLength(tokens), concurrency=8)
        tracemalloc.start()
        summarise(PD, load, costs, Independent(0.7))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    peak(20, 5)
    few = peak(200, 100)
    assert peak(200, 1000) < few + 1e5
    assert peak(2000, 100) < few + 1800 * 250 + 1e5


def test_the_goodput_of_objectives() -> None:
    load = make_workload(40, FixedLength(50), FixedLength(20), rate=20.0)
    costs = CostModel(made_up())
    run = simulate(PD, load, costs, Independent(0.7))
    objectives = tuple(request_times(run)[["ttft_s", "tpot_s"]].median())
    found = summarise(PD, load, costs, Independent(0.7), objectives=objectives)
    assert found.pop("goodput_requests_per_s") == goodput(run, *objectives) > 0
    assert found.keys() == summary(run).keys()


def test_a_run_whose_requests_were_all_rejected() -> None:
    load = make_workload(5, FixedLength(50), FixedLength(5), concurrency=2)
    options = {"max_context": 40}
    run = simulate(PD, load, CostModel(made_up()), Independent(0.7), **options)
    found = summarise(PD, load, CostModel(made_up()), Independent(0.7), **options)
    assert all(_same(found[name], value) for name, value in summary(run).items())
