"""A known error of one cause must be named, with its size, and the parts must add up to the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from calibrate.profile import QUANTILES, Profile
from engines.errors import InputError
from engines.policy.architecture import ARCHITECTURES
from engines.record.run import Run
from experiments.compare.exchange import BATCHES, CAUSES, CONTENTION, HOST, PADDING, SOLO
from experiments.compare.explain import Explanation, explain, explanations
from experiments.compare.parting import parting
from experiments.runner.predict import AcceptanceChoice, Prediction, predict, replayed
from tests.experiments import synthetic

TAPE = AcceptanceChoice("tape")
SIZES = {"batch_buckets": [1, 6, 12], "token_buckets": [64, 128]}
FACTS = {key: synthetic.INFO[key] for key in ("device", "pair", "dtype", "date")}


def profile(host_ms: float = 0.3) -> Profile:
    """Stages vary by 2 %, as on a GPU."""
    made = synthetic.profile()
    costs = made.stage_costs.copy()
    for place, name in enumerate(QUANTILES):
        costs[name] = costs["mean_ms"] * (0.98 + 0.01 * place)
    host = made.host_times.assign(before_ms=host_ms, after_ms=host_ms)
    return dataclasses.replace(made, info={**made.info, **SIZES}, stage_costs=costs, host_times=host)


def as_live(run: Run) -> Run:
    info = {key: value for key, value in run.info.items() if not key.startswith("replays")}
    return dataclasses.replace(run, info={**info, **FACTS, "kind": "live"}, spans=run.spans.assign(solo_s=np.nan))


def explained(
    live_profile: Profile, architecture: str = "pdv", without: tuple[str, ...] = (), concurrency: int = 5
) -> Explanation:
    """A stand-in for a live run, made with `live_profile`, against a replay of it made with `profile()`."""
    asked = synthetic.workload(count=80, concurrency=concurrency)
    layout = ARCHITECTURES[architecture]
    truth = Prediction(live_profile, AcceptanceChoice("independent", (0.7,)), extrapolate=True, seed=7)
    live = as_live(predict(layout, asked, truth))
    model = Prediction(profile(), TAPE, extrapolate=True, without=without)
    return explain(live, predict(layout, replayed(live), model, live=live), model.profile)


def slower(segment: str, factor: float) -> Profile:
    made = profile()
    times = [name for name in made.stage_costs if name.endswith("_ms")]
    costs = made.stage_costs.copy()
    costs.loc[costs["segment"] == segment, times] *= factor
    return dataclasses.replace(made, stage_costs=costs)


def contended(segment: str, factor: float) -> Profile:
    made = profile()
    rate = made.contention["rate"].where(made.contention["segment"] != segment, made.contention["rate"] * factor)
    return dataclasses.replace(made, contention=made.contention.assign(rate=rate))


def check_named(found: Explanation, cause: str, segments: tuple[str, ...] = (), within: float = 0.3) -> None:
    """The error is large, the cause makes up about all of it and no other cause much; the parts add up."""
    assert found.parts["error_s"].sum() == pytest.approx(found.simulated_s - found.live_s, abs=1e-12)
    assert abs(found.error) > 0.02
    shares = {name: found.share(name) / found.error for name in CAUSES}
    assert shares.pop(cause) == pytest.approx(1.0, abs=within), found.parts
    assert max(map(abs, shares.values())) < within, found.parts
    if segments:
        own = sum(found.share(cause, segment) for segment in segments) / found.share(cause)
        assert own == pytest.approx(1.0, abs=within), found.parts


@pytest.mark.parametrize(("architecture", "concurrency"), [("pd", 5), ("pdv", 3)])
@pytest.mark.parametrize("segment", ["draft", "verify"])
def test_slower_stages_are_named(architecture: str, concurrency: int, segment: str) -> None:
    """Slower kernels also contend otherwise, which is another cause."""
    check_named(explained(slower(segment, 1.1), architecture, concurrency=concurrency), SOLO, (segment,), within=0.4)


@pytest.mark.parametrize(("architecture", "concurrency"), [("baseline", 1), ("pd", 5), ("pdv", 3)])
def test_more_host_time_is_named(architecture: str, concurrency: int) -> None:
    """The baseline's other workers would hide it."""
    check_named(explained(profile(host_ms=0.9), architecture, concurrency=concurrency), HOST)


def test_contention_that_was_left_out_is_named() -> None:
    check_named(explained(profile(), without=("contention",)), CONTENTION, ("draft", "verify"))


def test_contention_of_one_segment_is_named() -> None:
    check_named(explained(contended("verify", 0.7)), CONTENTION, ("verify", "draft"))


def test_padding_that_was_left_out_is_named() -> None:
    check_named(explained(profile(), "pd", without=("padding",)), PADDING, ("draft", "verify"))


def test_host_time_that_was_left_out_is_named() -> None:
    check_named(explained(profile(), "pd", without=("host",)), HOST)


def test_a_perfect_simulation_has_nothing_to_explain() -> None:
    found = explained(profile())
    assert abs(found.error) < 0.02
    assert all(abs(found.share(cause)) < 0.02 for cause in CAUSES)


def test_simulations_that_are_no_replays_are_explained_by_cell_and_seed() -> None:
    lives = [as_live(synthetic.simulated("pd", concurrency=n, name=f"live{n}")) for n in (1, 3)]
    others = [synthetic.simulated("pd", concurrency=n, name=f"other{n}") for n in (3, 1)]
    found = explanations(lives, others, synthetic.profile())
    assert [(one.live.name, one.simulated.name) for one in found] == [("live1", "other1"), ("live3", "other3")]
    with pytest.raises(InputError, match="no simulated run has the cell and seed"):
        explanations(lives[:1], others[:1], synthetic.profile())


def test_what_no_cause_explains_is_called_different_batches() -> None:
    """Live, the verify lane took two requests at once and not twelve; the times are right."""
    live = as_live(synthetic.simulated(ARCHITECTURES["pd"].replace(slots=2), concurrency=6, count=40))
    model = Prediction(profile(host_ms=0.1), TAPE, extrapolate=True)
    plain = dataclasses.replace(model.profile, info=synthetic.INFO)
    model = Prediction(plain, TAPE, extrapolate=True)
    found = explain(live, predict(ARCHITECTURES["pd"], replayed(live), model, live=live), plain)
    check_named(found, BATCHES)
    assert found.parting is not None
    assert found.same < 0.5


def test_the_first_batch_that_differs_is_found() -> None:
    live = as_live(synthetic.simulated("pd", concurrency=3))
    later = live.steps["batch_id"].drop_duplicates().iloc[10]
    other = dataclasses.replace(live, steps=live.steps[live.steps["batch_id"] != later])
    first, same = parting(live, other)
    assert first is not None
    assert first.live is not None
    assert first.simulated is not None
    assert first.live.time_s == live.spans.set_index("batch_id").loc[later, "dispatched_s"].iloc[0]
    assert (len(first.live.members), len(first.simulated.members)) == (live.steps["batch_id"].eq(later).sum(), 0)
    assert same == pytest.approx(1 - 1 / live.spans["batch_id"].nunique())
    assert str(first).startswith(f"batch {first.number} of decode, live: draft+verify of")


def test_runs_with_the_same_batches_do_not_part() -> None:
    live = as_live(synthetic.simulated("pd", concurrency=1))
    assert parting(live, synthetic.stretched(live, 1.1, "slower")) == (None, 1.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: dataclasses.replace(p, info={**p.info, "date": "2020-01-01"}), "give that one"),
        (lambda p: dataclasses.replace(p, info={**p.info, "device": "another"}), "give the profile that matches it"),
    ],
)
def test_another_profile_is_refused(change: Callable[[Profile], Profile], reason: str) -> None:
    live = as_live(synthetic.simulated("pd"))
    made = predict(ARCHITECTURES["pd"], replayed(live), Prediction(profile(), TAPE), live=live)
    with pytest.raises(InputError, match=reason):
        explain(live, made, change(profile()))


def test_the_table_has_a_row_per_cause_and_segment() -> None:
    found = explained(slower("verify", 1.1))
    assert list(found.parts) == ["cause", "segment", "error_s"]
    assert not found.parts.duplicated(["cause", "segment"]).any()
    assert isinstance(found.parts, pd.DataFrame)
