"""What may be set against what: refused, named, or silently equal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engines.errors import InputError
from engines.policy.architecture import PDV, Step
from engines.record.run import Run
from engines.workload.workload import FixedLength, Workload, make_workload
from experiments.compare.compare import compare
from experiments.compare.report import write_report
from sim.acceptance import Independent
from sim.engine import simulate
from sim.routers import Fleet
from tests.experiments import synthetic
from tests.experiments.synthetic import as_live


@pytest.fixture(scope="module")
def run() -> Run:
    return synthetic.simulated("pdv")


def changed(run: Run, table: str, **values: object) -> Run:
    """The run with other values in a table of its info."""
    return dataclasses.replace(run, info={**run.info, table: {**run.info[table], **values}})


def refused(lives: list[Run], simulations: list[Run]) -> str:
    with pytest.raises(InputError) as caught:
        compare(lives, simulations)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def differing(lives: list[Run], simulations: list[Run]) -> str:
    (found,) = set(compare(lives, simulations).metrics["differs"])
    return str(found)


def test_a_run_of_the_wrong_kind_is_refused(run: Run) -> None:
    live = as_live(run)
    assert refused([run], [run]).startswith("live = 'pdv': the record has kind = 'simulated'; give a live run")
    assert refused([live], [live]).startswith("simulated = 'live': the record has kind = 'live'")


@pytest.mark.parametrize("what", ["device", "pair", "dtype"])
def test_another_device_pair_or_type_is_refused(run: Run, what: str) -> None:
    assert refused([as_live(run)], [changed(run, "costs", **{what: "another"})]).startswith(
        f"simulated {what} = 'another': the live run live has '{synthetic.INFO[what]}'"
    )
    unknown = dataclasses.replace(run, info={**run.info, "costs": {}})
    assert differing([as_live(run)], [unknown]) == "device, pair, dtype"


OTHER_WORKLOADS = {
    "prompt_lengths": {"prompt_lengths": FixedLength(20)},
    "output_lengths": {"output_lengths": FixedLength(20)},
    "requests": {"count": 13},
    "seed": {"seed": 2},
    "temperature": {"temperature": 0.5},
}


@pytest.mark.parametrize("what", OTHER_WORKLOADS)
def test_another_workload_is_named(what: str) -> None:
    lengths = {"prompt_lengths": FixedLength(30), "output_lengths": FixedLength(30)}
    made = {"count": 12, **lengths, "concurrency": 3, "seed": 1}
    live = synthetic.live("pdv", asked=make_workload(**made))  # type: ignore[arg-type]
    assert differing([live], [synthetic.simulated("pdv", asked=make_workload(**made))]) == ""  # type: ignore[arg-type]
    other = make_workload(**{**made, **OTHER_WORKLOADS[what]})  # type: ignore[arg-type]
    assert differing([live], [synthetic.simulated("pdv", asked=other)]) == what


def test_a_fleet_is_named() -> None:
    load, source = synthetic.workload(), Independent(0.7)
    one, fleet = (simulate(PDV, load, synthetic.profile(), source, fleet=Fleet(n)) for n in (1, 3))
    assert differing([as_live(one)], [fleet]) == "replicas"
    assert differing([as_live(one)], [one]) == ""
    assert "not repeats: they differ in replicas" in refused([as_live(one)], [one, fleet])


def test_another_trace_of_the_same_name_is_named() -> None:
    def traced(digest: str) -> Workload:
        workload = synthetic.workload(rate=5.0)
        return dataclasses.replace(workload, info={"kind": "trace", "trace": "day.csv", "trace_digest": digest})

    live = synthetic.live("pdv", asked=traced("a"))
    assert differing([live], [synthetic.simulated("pdv", asked=traced("a"))]) == ""
    assert differing([live], [synthetic.simulated("pdv", asked=traced("b"))]) == "trace"


def test_requests_that_no_description_tells_apart_are_named() -> None:
    """Lists of lengths are described by how many they are."""
    workload = synthetic.workload()
    longer = tuple(dataclasses.replace(request, max_tokens=request.max_tokens + 1) for request in workload.requests)
    live = synthetic.live("pdv", asked=dataclasses.replace(workload, requests=longer))
    assert differing([live], [synthetic.simulated("pdv")]) == "lengths"


OTHER_LAYOUTS = {
    "slots": PDV.replace(slots=2),
    "permits": PDV.replace(permits=1),
    "hybrid_at_or_below": PDV.replace(hybrid_at_or_below=3),
    "verify_first_above": PDV.replace(verify_first_above=None),
    "priority": PDV.replace(priority=PDV.priority[::-1]),
    "lanes.draft.draft": PDV.with_batch_limits({Step.DRAFT: 2}),
}


def test_models_are_compared_where_both_sides_name_them(run: Run) -> None:
    one, other = ({"draft": {"digest": digest}} for digest in ("a", "b"))
    live = dataclasses.replace(as_live(run), info={**as_live(run).info, "pair_models": one})
    assert differing([live], [run]) == ""  # an older profile does not say
    assert differing([live], [changed(run, "costs", pair_models=one)]) == ""
    assert "simulated pair_models" in refused([live], [changed(run, "costs", pair_models=other)])


@pytest.mark.parametrize("what", OTHER_LAYOUTS)
def test_another_limit_is_named(what: str) -> None:
    assert differing([synthetic.live("pdv")], [synthetic.simulated(OTHER_LAYOUTS[what])]) == what


def test_another_context_limit_is_named(run: Run) -> None:
    assert differing([as_live(run, max_context=511)], [run]) == "max_context"


def test_a_profile_of_another_date_is_named_and_one_of_another_device_refused(run: Run) -> None:
    live, profile = as_live(run), synthetic.profile()
    assert set(compare([live], [run], profile).metrics["differs"]) == {""}
    later = dataclasses.replace(profile, info={**profile.info, "date": "2026-03-04"})
    assert set(compare([live], [run], later).metrics["differs"]) == {"profile"}
    elsewhere = dataclasses.replace(profile, info={**profile.info, "device": "another device"})
    with pytest.raises(InputError, match="profile device = 'another device': the live run live has 'made-up device'"):
        compare([live], [run], elsewhere)


def test_live_runs_of_a_cell_that_are_no_repeats_are_refused(run: Run) -> None:
    one = as_live(run, 1.0, "one")
    for other, what in (
        (as_live(synthetic.simulated(OTHER_LAYOUTS["slots"]), 1.0, "other"), "slots"),
        (as_live(run, 1.0, "other", device="another device"), "device"),
        (as_live(synthetic.simulated("pdv", count=13), 1.0, "other"), "requests"),
    ):
        message = refused([one, other], [run])
        assert message.startswith("live = 'one, other': both are pdv, concurrency 3, k 4, but not repeats")
        assert f"they differ in {what};" in message


def test_repeats_with_other_random_numbers_are_repeats_and_are_named(run: Run) -> None:
    lives = [as_live(run, 1.0, "one"), as_live(synthetic.simulated(asked=synthetic.workload(seed=2)), 1.0, "two")]
    comparison = compare(lives, [run])
    assert set(comparison.metrics["live_repeats"]) == {2}
    assert set(comparison.metrics["differs"]) == {"seed"}


def test_simulations_of_a_cell_are_averaged_over_seeds_alone(run: Run) -> None:
    reseeded = synthetic.simulated("pdv", seed=5)
    assert differing([as_live(run)], [run, reseeded]) == ""
    narrow = synthetic.simulated(OTHER_LAYOUTS["slots"], name="narrow")
    assert "not repeats: they differ in slots;" in refused([as_live(run)], [run, narrow])
    recalibrated = changed(run, "costs", date="2026-03-04")
    assert "not repeats: they differ in profile;" in refused([as_live(run)], [run, recalibrated])


def test_the_report_says_which_cells_are_not_alike_and_in_what(run: Run, tmp_path: Path) -> None:
    others = synthetic.simulated(OTHER_LAYOUTS["slots"], asked=synthetic.workload(seed=2))
    pd_live, pd_simulated = synthetic.live("pd"), synthetic.simulated("pd")
    text = write_report(compare([as_live(run), pd_live], [others, pd_simulated]), tmp_path / "report.txt").read_text()
    assert "pdv (1)" in text
    assert "pd (1)" not in text
    assert "(1) simulated with other settings than live: seed, slots" in text
    assert "1 of them simulated with other settings than live" in text
