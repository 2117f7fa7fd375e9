"""Workloads: rates, lengths, spreads, keyed randomness, replay."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from engines.errors import InputError
from engines.policy.architecture import PDV
from engines.policy.request import Request
from engines.policy.scheduler import Scheduler
from engines.record.run import Run
from engines.workload.lengths import MOST_TOKENS, FixedLength, Lengths, ListedLength, LogNormalLength, UniformLength
from engines.workload.workload import (
    LEAST_CV,
    MOST_CV,
    MOST_REQUESTS,
    Workload,
    lengths_of,
    make_workload,
    replay,
    with_sampling,
)
from engines.workload.workload import _gaps as quantiles_of_gaps
from tests.driver import drive

MANY = 20_000


SHORT = FixedLength(8)


def test_a_rate_may_change_at_equal_shares_of_the_requests() -> None:
    for process in ("poisson", "fixed"):
        steady = _gaps(_open(count=30, rate=2.0, process=process))
        stepped = _open(count=30, rate=2.0, process=process, rate_steps=(1, 3, 0.5))
        np.testing.assert_allclose(_gaps(stepped)[:9], steady[:9])
        np.testing.assert_allclose(_gaps(stepped)[9:19], steady[9:19] / 3)
        np.testing.assert_allclose(_gaps(stepped)[19:], steady[19:] * 2)
        assert stepped.info["rate_steps"] == [1, 3, 0.5]
        assert "rate_steps" not in _open(count=3).info


@pytest.mark.parametrize("steps", [(1.0, 0.0), (-1.0,), (math.inf,), (True,)])
def test_a_bad_change_of_the_rate_is_named(steps: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="rate_steps"):
        _open(count=5, rate_steps=steps)


def test_clients_have_no_rate_that_could_change() -> None:
    with pytest.raises(InputError, match=r"rate_steps = .*open loop"):
        make_workload(5, SHORT, SHORT, concurrency=2, rate_steps=(1, 3))


SPREAD = LogNormalLength(median=100, sigma=0.5, low=1, high=10_000)


def _open(count: int = MANY, **settings: Any) -> Workload:
    return make_workload(count, SHORT, SHORT, **{"rate": 4.0, **settings})


def _gaps(workload: Workload) -> np.ndarray:
    return np.diff([request.arrival_s or 0.0 for request in workload.requests])


@pytest.mark.parametrize(
    ("process", "cv", "expected"), [("poisson", 1.0, 1.0), ("gamma", 0.5, 0.5), ("gamma", 2.5, 2.5)]
)
def test_gaps_have_the_asked_rate_and_coefficient_of_variation(process: str, cv: float, expected: float) -> None:
    gaps = _gaps(_open(process=process, cv=cv))
    assert gaps.mean() == pytest.approx(1 / 4, rel=4 * expected / math.sqrt(MANY))
    assert gaps.std() / gaps.mean() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("cv", [LEAST_CV, 0.03, 30.0, MOST_CV])
def test_the_spread_of_gaps_is_right_in_all_the_range_that_is_taken(cv: float) -> None:
    uniform = (np.arange(1_000_000) + 0.5) / 1_000_000
    gaps = quantiles_of_gaps(uniform, 4.0, "gamma", cv)
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.01)
    assert gaps.std() == pytest.approx(cv / 4, rel=0.02)
    assert (np.diff(gaps) >= 0).all()


def test_the_widest_lengths_stay_within_their_bounds() -> None:
    lengths = _lengths(LogNormalLength(5_000, 10.0, 3, 10_000_000))
    assert (lengths.min(), lengths.max()) == (3, 10_000_000)


def test_fixed_gaps_are_all_alike_and_the_first_arrival_is_at_zero() -> None:
    workload = _open(count=5, process="fixed", rate=2.0)
    assert [request.arrival_s for request in workload.requests] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert _open().requests[0].arrival_s == 0.0


def test_a_gamma_process_of_cv_one_is_poisson() -> None:
    np.testing.assert_allclose(_gaps(_open(process="gamma")), _gaps(_open(process="poisson")), rtol=1e-6, atol=1e-9)


def test_twice_the_rate_is_the_same_load_at_half_the_times() -> None:
    np.testing.assert_allclose(_gaps(_open(rate=8.0)), _gaps(_open(rate=4.0)) / 2, atol=1e-9)


def _lengths(lengths: Lengths, count: int = MANY, seed: int = 0) -> np.ndarray:
    workload = make_workload(count, lengths, lengths, concurrency=1, seed=seed)
    return np.array([[request.prompt_tokens, request.max_tokens] for request in workload.requests])


def test_fixed_lengths_are_fixed() -> None:
    assert (_lengths(FixedLength(7), 50) == 7).all()


def test_uniform_lengths_are_equally_likely_from_low_to_high() -> None:
    values, counts = np.unique(_lengths(UniformLength(3, 6))[:, 0], return_counts=True)
    assert values.tolist() == [3, 4, 5, 6]
    np.testing.assert_allclose(counts / MANY, 0.25, atol=0.02)


def test_lognormal_lengths_have_their_median_and_spread_within_their_bounds() -> None:
    prompts = _lengths(SPREAD)[:, 0]
    assert np.median(prompts) == pytest.approx(100, rel=0.03)
    assert np.log(prompts).std() == pytest.approx(0.5, rel=0.03)
    bounded = _lengths(dataclasses.replace(SPREAD, low=80, high=120))
    assert (bounded.min(), bounded.max()) == (80, 120)
    assert (_lengths(LogNormalLength(64, 0.0, 1, 100), 20) == 64).all()


@pytest.mark.parametrize(
    ("lengths", "tokens"),
    [(FixedLength(1), [1, 1, 1]), (UniformLength(1, 4), [1, 3, 4]), (LogNormalLength(64, 1.0, 1, 500), [1, 64, 174])],
)
def test_a_larger_number_is_a_longer_text(lengths: Lengths, tokens: list[int]) -> None:
    """Numbers of 0, 1/2 and just above that of one standard deviation (or, uniform, almost 1)."""
    uniform = np.array([0.0, 0.5, 0.8414 if isinstance(lengths, LogNormalLength) else 0.9999])
    found = lengths.tokens(uniform)
    assert found.tolist() == tokens
    assert found.dtype.kind == "i"


def test_the_shortest_text_has_one_token() -> None:
    for lengths in (FixedLength(1), UniformLength(1, 1), LogNormalLength(1, 0.0, 1, 1), ListedLength((1,))):
        assert lengths.tokens(np.array([0.0, 0.9])).tolist() == [1, 1]


def test_lengths_say_what_they_are() -> None:
    assert FixedLength(7).describe() == {"kind": "fixed", "tokens": 7}
    assert UniformLength(2, 5).describe() == {"kind": "uniform", "low": 2, "high": 5}
    lognormal = {"kind": "lognormal", "median": 9.0, "sigma": 0.5, "low": 1, "high": 20}
    assert LogNormalLength(9.0, 0.5, 1, 20).describe() == lognormal
    assert ListedLength((3, 1)).describe() == {"kind": "listed", "values": 2}


def test_lengths_of_a_trace_keep_their_pairs_and_start_over() -> None:
    trace = Workload((Request(0, 5, 50, 0.0), Request(1, 6, 60, 1.0)))
    workload = make_workload(3, *lengths_of(trace), concurrency=1)
    assert [(r.prompt_tokens, r.max_tokens) for r in workload.requests] == [(5, 50), (6, 60), (5, 50)]


def test_prompt_and_output_lengths_are_independent() -> None:
    prompts, outputs = _lengths(SPREAD).T
    assert abs(np.corrcoef(prompts, outputs)[0, 1]) < 4 / math.sqrt(MANY)


@pytest.mark.parametrize(
    "load", [{"rate": 3.0, "process": "gamma", "cv": 2.0}, {"concurrency": 3, "mean_think_s": 2.0}]
)
def test_adding_requests_never_changes_earlier_ones(load: dict[str, Any]) -> None:
    few, many = (make_workload(n, SPREAD, UniformLength(1, 99), seed=5, **load) for n in (10, 300))
    assert many.requests[:10] == few.requests
    assert many.think_s[:10] == few.think_s


def test_the_seed_decides_everything() -> None:
    assert _open(count=50, seed=1) == _open(count=50, seed=1)
    assert not np.array_equal(_gaps(_open(count=50, seed=1)), _gaps(_open(count=50, seed=2)))
    assert not np.array_equal(_lengths(SPREAD, 50, seed=1), _lengths(SPREAD, 50, seed=2))


def test_a_workload_says_how_it_was_made() -> None:
    asked = {"seed": 3, "temperature": 0.5, "ignore_eos": False}
    lengths = {"prompt_lengths": SPREAD.describe(), "output_lengths": SHORT.describe()}
    shared = {"kind": "synthetic", "count": 2, **asked, **lengths}
    closed = make_workload(2, SPREAD, SHORT, concurrency=1, mean_think_s=2.0, **asked)
    assert closed.info == {**shared, "concurrency": 1, "mean_think_s": 2.0}
    for process, cv in (("poisson", 1.0), ("gamma", 2.5), ("fixed", 0.0)):
        given = {"cv": cv} if process == "gamma" else {}
        opened = make_workload(2, SPREAD, SHORT, rate=4.0, process=process, **given, **asked)
        assert opened.info == {**shared, "rate": 4.0, "process": process, "cv": cv}
    assert {(r.seed, r.temperature, r.ignore_eos) for r in closed.requests} == {(3, 0.5, False)}
    plain = make_workload(2, SPREAD, SHORT, concurrency=1)
    assert {(r.seed, r.temperature, r.ignore_eos) for r in plain.requests} == {(0, 0.0, True)}
    assert plain == make_workload(2, SPREAD, SHORT, concurrency=1, seed=0)


def test_how_requests_arrive_does_not_change_their_lengths() -> None:
    closed = make_workload(50, SPREAD, SPREAD, concurrency=4)
    opened = make_workload(50, SPREAD, SPREAD, rate=1.0)
    assert [dataclasses.replace(request, arrival_s=None) for request in opened.requests] == list(closed.requests)


def test_think_times_are_exponential_after_each_clients_first_request() -> None:
    workload = make_workload(MANY, SHORT, SHORT, concurrency=10, mean_think_s=3.0)
    think = np.array(workload.think_s)
    assert (think[:10] == 0).all()
    assert think[10:].mean() == pytest.approx(3.0, rel=0.03)
    assert think[10:].std() == pytest.approx(3.0, rel=0.05)
    assert make_workload(5, SHORT, SHORT, concurrency=2).think_s == ()


def test_a_trace_takes_the_temperature_and_the_seed_that_are_asked_for() -> None:
    trace = Workload((Request(0, 5, 50, 0.0), Request(1, 6, 60, 1.0)), info={"kind": "trace"})
    sampled = with_sampling(trace, temperature=0.7, seed=3)
    assert [(r.temperature, r.seed, r.arrival_s) for r in sampled.requests] == [(0.7, 3, 0.0), (0.7, 3, 1.0)]
    assert sampled.info == {"kind": "trace", "temperature": 0.7, "seed": 3}
    for wrong in ({"temperature": -1.0}, {"seed": -1}):
        with pytest.raises(InputError):
            with_sampling(trace, **wrong)


def test_a_replay_asks_what_was_asked_when_it_was_asked() -> None:
    requests = [Request(7, 10, 6, 1.5), Request(3, 20, 9, 0.5), Request(5, 30, 4, 0.5)]
    recorded = drive(Scheduler(PDV), requests, cancel=[(2.0, 7)])
    recorded.info["workload"] = {"temperature": 0.5, "seed": 11, "ignore_eos": False}
    again = replay(recorded)
    asked = [(r.id, r.prompt_tokens, r.max_tokens, r.arrival_s) for r in again.requests]
    assert asked == [(3, 20, 9, 0.5), (5, 30, 4, 0.5), (7, 10, 6, 1.5)]
    assert {(r.temperature, r.seed, r.ignore_eos) for r in again.requests} == {(0.5, 11, False)}
    assert again.concurrency is None
    facts = {"kind": "replay", "count": 3, "of": recorded.name}
    assert again.info == {**recorded.info["workload"], **facts}
    recorded.info["workload"] = {}  # a record that does not say was greedy, and went on to its limits
    assert {(r.temperature, r.seed, r.ignore_eos) for r in replay(recorded).requests} == {(0.0, 0, True)}


def test_a_replay_of_a_run_without_requests_is_refused() -> None:
    recorded = drive(Scheduler(PDV), [Request(0, 10, 6, 0.0)])
    with pytest.raises(InputError, match="at least one request"):
        replay(Run({}, recorded.requests[:0], recorded.steps, recorded.spans))


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("count", {"count": 0}),
        ("count", {"count": MOST_REQUESTS + 1}),
        ("concurrency", {"rate": None, "concurrency": MOST_REQUESTS + 1}),
        ("rate", {"rate": -2.0}),
        ("rate", {"rate": 0}),
        ("rate", {"rate": math.nan}),
        ("rate", {"rate": "fast"}),
        ("rate", {"rate": 1e-15}),  # the second arrival would be where a clock has no microseconds
        ("rate", {"rate": 5e-324}),
        ("rate", {"rate": 1e-8, "count": 1000}),
        ("process", {"process": "bursty"}),
        ("cv", {"process": "gamma", "cv": 0.0}),
        ("cv", {"process": "poisson", "cv": 2.0}),
        ("cv", {"process": "gamma", "cv": 1e-8}),
        ("cv", {"process": "gamma", "cv": 1e8}),
        ("cv", {"process": "gamma", "cv": math.nan}),
        ("cv", {"process": "gamma", "cv": "bursty"}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**63}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": "warm"}),
        ("temperature", {"temperature": 10**400}),
        ("mean_think_s", {"rate": None, "concurrency": 2, "mean_think_s": 1e300}),
        ("think_s of a client, in all", {"rate": None, "concurrency": 1, "mean_think_s": 2e8, "count": 50}),
        ("mean_think_s", {"mean_think_s": 1.0}),  # nobody thinks in an open loop
        ("mean_think_s", {"rate": None, "concurrency": 2, "mean_think_s": -1.0}),
        ("concurrency", {"rate": None, "concurrency": 0}),
        ("process", {"rate": None, "concurrency": 2, "process": "poisson"}),
        ("cv", {"rate": None, "concurrency": 2, "cv": 2.0}),
        ("concurrency, rate", {"rate": None}),
        ("concurrency, rate", {"concurrency": 3}),
    ],
)
def test_a_bad_setting_is_named(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        _open(**{"count": 3, **settings})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("length", lambda: FixedLength(0)),
        ("length", lambda: FixedLength(MOST_TOKENS + 1)),
        ("length.values", lambda: ListedLength((1, MOST_TOKENS + 1))),
        ("length.high", lambda: LogNormalLength(5, 1, 1, MOST_TOKENS + 1)),
        ("length.low", lambda: UniformLength(0, 5)),
        ("length.low, high", lambda: UniformLength(6, 5)),
        ("length.high", lambda: UniformLength(6, 7.5)),  # type: ignore[arg-type]
        ("length.median", lambda: LogNormalLength(0, 1, 1, 5)),
        ("length.sigma", lambda: LogNormalLength(5, -1, 1, 5)),
        ("length.sigma", lambda: LogNormalLength(5, 1e9, 1, 5)),
        ("length.median", lambda: LogNormalLength(1e300, 1, 1, 5)),
        ("length", lambda: FixedLength(10**13)),
        ("length.values", lambda: ListedLength(())),
        ("length.values", lambda: ListedLength((3, 0))),
        ("requests", lambda: Workload(())),
        ("max_tokens", lambda: Workload((Request(0, 1, 10**13),), 1)),
        ("prompt_tokens", lambda: Workload((Request(0, 5.5, 1),), 1)),  # type: ignore[arg-type]
        ("arrival_s", lambda: Workload((Request(0, 1, 1, 0.0), Request(1, 1, 1, 1e300)))),
        ("arrival_s", lambda: Workload((Request(0, 1, 1, 0.0), Request(1, 1, 1, math.inf)))),
        ("arrival_s", lambda: Workload((Request(0, 1, 1, -1.0),))),
        ("arrival_s", lambda: Workload((Request(0, 1, 1, math.nan),))),
        ("think_s", lambda: Workload((Request(0, 1, 1),), 1, (math.inf,))),
        ("think_s", lambda: Workload((Request(0, 1, 1),), 1, (-1.0,))),
        ("concurrency", lambda: Workload((Request(0, 1, 1),), 0)),
        ("concurrency", lambda: Workload((Request(0, 1, 1),), MOST_REQUESTS + 1)),
        ("requests", lambda: Workload((Request(0, 1, 1, 0.0), Request(0, 1, 1, 0.0)))),
        ("arrival_s", lambda: Workload((Request(0, 1, 1),))),
        ("arrival_s", lambda: Workload((Request(0, 1, 1, 2.0), Request(1, 1, 1, 1.0)))),
        ("think_s", lambda: Workload((Request(0, 1, 1),), 1, (1.0, 2.0))),
        ("think_s", lambda: Workload((Request(0, 1, 1, 0.0),), think_s=(1.0,))),
    ],
)
def test_a_bad_value_is_named(field: str, make: Any) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.field == field
