"""Experiments as TOML, and the short texts in them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from engines.errors import InputError
from engines.policy.architecture import ARCHITECTURES, Stage, Step
from engines.policy.changes import changed, parse_batch_limits
from engines.policy.draft_length import (
    AdaptiveDraftLength,
    FixedDraftLength,
    LoadAdaptiveDraftLength,
    parse_draft_length,
)
from engines.storage.validation import checked
from engines.workload.lengths import parse_lengths
from engines.workload.workload import FixedLength, LogNormalLength, UniformLength
from experiments.commands.arguments import parse_numbers
from experiments.runner.config import CONFIGS, Experiment, WorkloadConfig
from experiments.runner.predict import AcceptanceChoice, parse_acceptance

OPEN: dict[str, Any] = {"concurrencies": [], "rates": [2.0]}
TRACED: dict[str, Any] = {"concurrencies": []}
GOOD: dict[str, Any] = {"architectures": ["pd", "pdv"], "concurrencies": [1, 4], "workload": {"requests": 6},
                        "calibration": {}}  # fmt: skip


SIMULATED: dict[str, Any] = {"mode": "simulated", "calibration": None, "profile": "x"}


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIGS.glob("*.toml"))])
def test_the_shipped_configs_are_good(name: str) -> None:
    experiment = Experiment.load(name)
    points = experiment.points()
    assert len({point.name for point in points}) == len(points)
    assert Experiment.from_dict(tomllib.loads(tomli_w.dumps(experiment.resolved()))) == experiment
    assert experiment.profile is None or Path(experiment.profile).is_dir()


def test_the_demo_is_what_was_promised() -> None:
    demo = Experiment.load("demo")
    assert demo.concurrencies == [1, 3, 5, 10]
    assert demo.repeats == 3
    assert {point.layout.architecture.name for point in demo.points()} == {"baseline", "pd", "pdv"}


def test_the_study_of_layouts_is_what_was_promised() -> None:
    loads: dict[str, list[int]] = {}
    for point in Experiment.load("layouts").points():
        clients = point.workloads[0].concurrency
        loads.setdefault(point.layout.architecture.name, []).append(clients or 0)
        assert len(point.workloads) == 2
        assert {(r.prompt_tokens, r.max_tokens) for r in point.workloads[0].requests} == {(128, 128)}
    everything = [1, 3, 5, 10, 16, 32, 64]
    assert loads == {
        "PD 1-6": everything, "PDV 1-6-12": everything, "PD 4-64": everything, "PDV 4-64-64": everything,
        "baseline, 4 workers": [1, 3, 5, 10], "baseline, 8 workers": [1, 3, 5, 10],
    }  # fmt: skip


def test_points_are_the_grid_with_architectures_outermost() -> None:
    points = Experiment.from_dict({**GOOD, "k": ["2", "3-5"]}).points()
    assert [p.name for p in points[:4]] == ["pd-c1-k2", "pd-c4-k2", "pd-c1-k3-5", "pd-c4-k3-5"]
    assert len(points) == 8
    assert points[-1].workloads[0].concurrency == 4


def test_every_repeat_has_a_workload_of_its_own() -> None:
    workload = {"requests": 6, "output_tokens": "16-64"}
    first, second = (
        Experiment.from_dict({**GOOD, "repeats": 2, "seed": 5, "workload": workload}).points()[0].workloads
    )
    assert [w.info["seed"] for w in (first, second)] == [5, 6]
    assert first.requests != second.requests


def test_busy_cells_get_more_requests_and_the_same_first_ones() -> None:
    config = {**GOOD, "workload": {"requests": 6, "requests_per_client": 3, "output_tokens": "16-64"}}
    few, *_, many = (point.workloads[0] for point in Experiment.from_dict(config).points())
    assert (len(few.requests), len(many.requests)) == (6, 12)
    assert many.requests[:6] == few.requests


def test_rates_and_traces_are_loads_too(tmp_path: Path) -> None:
    rates = {**GOOD, "architectures": ["pd"], "concurrencies": [], "rates": [2.0, 4.5]}
    assert [p.name for p in Experiment.from_dict(rates).points()] == ["pd-r2-k4", "pd-r4.5-k4"]
    (tmp_path / "trace.jsonl").write_text('{"timestamp": 0, "prompt_tokens": 20, "output_tokens": 10}\n' * 40)
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(ARCHITECTURES["pd"].replace(name="mine").to_dict()))
    traced: dict[str, Any] = {
        "architectures": ["mine.toml"], "seed": 5, "mode": "live",
        "workload": {"trace": "trace.jsonl", "temperature": 0.5},
    }  # fmt: skip
    (tmp_path / "config.toml").write_text(tomli_w.dumps(traced))  # paths in it are relative to its folder
    (point,) = Experiment.load(tmp_path / "config.toml").points()
    assert point.name == "mine-trace-k4"
    assert [(r.seed, r.temperature, r.prompt_tokens) for r in point.workloads[0].requests] == [(5, 0.5, 20)] * 40
    traced["workload"] = {"trace": str(tmp_path / "trace.jsonl"), "requests": 3}
    traced["architectures"] = ["pd"]
    assert len(Experiment.from_dict(traced).points()[0].workloads[0].requests) == 3
    traced["workload"]["requests"] = 41
    with pytest.raises(InputError, match="requests = 41: the trace has 40 requests"):
        Experiment.from_dict(traced)


def test_architectures_can_be_changed_or_described_in_place(tmp_path: Path) -> None:
    described = ARCHITECTURES["pd"].replace(name="mine").to_dict()
    changed = {
        "base": "pdv", "name": "wide", "batch_limit": "draft=12,verify=24", "slots": 9, "draft_length": "2-6",
        "streams": {"verify": 0}, "priority": ["verify", "draft", "prefill"], "verify_first_above": False,
        "permits": 2, "hybrid": 0, "concurrencies": [7],
    }  # fmt: skip
    wide, mine = Experiment.from_dict({**GOOD, "architectures": [changed, described]}).layouts()
    built = wide.architecture
    assert (built.name, built.slots, built.draft_length.maximum, built.permits) == ("wide", 9, 6, 2)
    assert built.lanes[1].steps == {Step.VERIFY: 24}
    assert [lane.stream for lane in built.lanes] == [0, 0, 2]
    assert built.priority == (Stage.VERIFY, Stage.DRAFT, Stage.PREFILL)
    assert (built.verify_first_above, built.hybrid_at_or_below) == (None, 0)
    assert wide.loads == (("concurrency", 7),)
    assert mine.architecture == ARCHITECTURES["pd"].replace(name="mine")


def test_slots_are_named_where_somebody_wrote_them(tmp_path: Path) -> None:
    table = ARCHITECTURES["pd"].to_dict()
    without = {name: value for name, value in table.items() if name != "slots"}
    (tmp_path / "with.toml").write_text(tomli_w.dumps({**table, "name": "with"}))
    (tmp_path / "without.toml").write_text(tomli_w.dumps({**without, "name": "without"}))
    files = [str(tmp_path / f"{name}.toml") for name in ("with", "without")]
    inline = [{**table, "name": "inline"}, {"base": "pdv", "slots": 5}, {"base": "pdv", "name": "x"}]
    inline.append({"base": files[0], "name": "y"})
    layouts = Experiment.from_dict({**GOOD, "architectures": ["baseline", *files, *inline]}).layouts()
    assert [layout.slots_named for layout in layouts] == [False, True, False, True, True, False, True]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"batches": [1, 3]}, "calibration.batches"),
        ({"contexts": [32, 100]}, "calibration.contexts"),
        ({"prompt_tokens": [16]}, "calibration.prompt_tokens"),
        ({"packed": [1]}, "calibration.packed"),
    ],
)
def test_a_calibration_that_does_not_cover_its_cells_is_refused(change: dict[str, Any], field: str) -> None:
    whole = {"batches": [1, 4], "contexts": [32, 128], "prompt_tokens": [16, 128], "packed": [1, 2]}
    packing = {"base": "pd", "batch_limit": "prefill=2"}
    grid = {**GOOD, "architectures": [packing], "calibration": whole}
    Experiment.from_dict(grid)
    with pytest.raises(InputError, match="can need") as caught:
        Experiment.from_dict({**grid, "calibration": {**whole, **change}})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"architectures": []}, "architectures"),
        ({"architectures": ["pvd"]}, "architecture"),
        ({"architectures": [{"base": "pd", "colour": 3}]}, "architectures colour"),
        ({"architectures": [{"name": "x", "lanes": []}]}, "lanes"),
        ({"architectures": ["pd", "pd"]}, "cells"),
        ({"architectures": [{"base": "pd", "slots": "auto"}]}, "architectures slots"),
        ({"architectures": [{"base": "pd", "streams": {"verify": 0}}]}, "architectures streams"),
        ({"architectures": [{"base": "pd", "priority": ["draft"]}]}, "priority"),
        ({"mode": "never"}, "mode"),
        ({"calibration": None}, "profile"),
        ({**SIMULATED, "device": "cpu"}, "device"),
        ({**SIMULATED, "calibration": {}}, "calibration"),
        ({"mode": "live", "acceptance": "0.8"}, "acceptance"),
        ({"mode": "live", "profile": "x"}, "profile"),
        ({"max_context": 64}, "max_context"),
        ({"concurrencies": [0]}, "concurrencies.0"),
        ({"concurrencies": []}, "loads"),
        ({"rates": [2.0]}, "loads"),
        ({"repeats": 0}, "repeats"),
        ({"seed": -1}, "seed"),
        ({"k": ["0-4"]}, "draft_length"),
        ({"colour": "red"}, "colour"),
        ({"workload": {"requests": "many"}}, "workload.requests"),
        ({"workload": {"output_tokens": "9-3"}}, "output_tokens"),
        ({"workload": {"process": "normal"}}, "workload.process"),
        ({"workload": {"process": "gamma"}}, "workload.process"),  # a closed loop has no arrivals to choose
        ({"workload": {"cv": 2.0}}, "workload.cv"),
        ({**OPEN, "workload": {"requests_per_client": 4}}, "workload.requests_per_client"),
        ({**TRACED, "workload": {"trace": "x.csv", "prompt_tokens": "16"}}, "workload.prompt_tokens"),
        ({**TRACED, "workload": {"trace": "x.csv", "output_tokens": "16"}}, "workload.output_tokens"),
        ({**TRACED, "workload": {"trace": "x.csv", "process": "fixed"}}, "workload.process"),
        ({**TRACED, "workload": {"trace": "x.csv", "cv": 2.0}}, "workload.cv"),
        ({"workload": {"temperature": -0.5}}, "workload.temperature"),
        ({"calibration": {"budget_s": 0}}, "calibration.budget_s"),
        ({"repeats": True}, "repeats"),
        ({"concurrencies": ["3"]}, "concurrencies.0"),
        ({"concurrencies": 3}, "concurrencies"),
        ({"rates": [float("inf")]}, "rates.0"),
        ({"workload": 5}, "workload"),
        ({"workload": {"cv": float("nan")}}, "workload.cv"),
        ({"architectures": [{"base": "pd", "batch_limit": 3}]}, "architectures batch_limit"),
        ({"architectures": [{"base": "pd", "slots": [1]}]}, "architectures slots"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        Experiment.from_dict({**GOOD, **change})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
    assert len(caught.value.remedy) > 10


@pytest.mark.parametrize(
    "layout", [{"base": "pd", "name": "PD 4/64"}, ARCHITECTURES["pd"].to_dict() | {"name": "PD 4/64"}]
)
def test_a_name_that_no_folder_can_have_is_refused_with_one_that_it_can(layout: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^name = 'PD 4/64': .* use 'PD 4-64'$"):
        Experiment.from_dict({**GOOD, "architectures": [layout]})
    Experiment.from_dict({**GOOD, "architectures": [{**layout, "name": "PD 4-64"}]})


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("architectures = [")
    for path, remedy in ((tmp_path / "broken.toml", "not valid TOML"), (tmp_path / "none.toml", "cannot read")):
        with pytest.raises(InputError, match=remedy):
            Experiment.load(path)


def test_lengths() -> None:
    assert parse_lengths("x", "64") == FixedLength(64)
    assert parse_lengths("x", "16-96") == UniformLength(16, 96)
    assert parse_lengths("x", "64~0.5[16-256]") == LogNormalLength(64, 0.5, 16, 256)
    for bad in ("", "0", "-4", "9-3", "0-4", "1.5", "64~[1-2]", "64~0.5[9-3]", "0~1[1-2]", "4 4"):
        with pytest.raises(InputError, match="x = "):
            parse_lengths("x", bad)


def test_draft_lengths() -> None:
    assert parse_draft_length("4") == FixedDraftLength(4)
    assert parse_draft_length("0") == FixedDraftLength(0)
    assert parse_draft_length("load") == LoadAdaptiveDraftLength()
    assert parse_draft_length("load0-2") == LoadAdaptiveDraftLength(0, 2, 2)
    assert parse_draft_length("load5-6") == LoadAdaptiveDraftLength(5, 6, 5)
    for text in ("0", "4", "2-8", "load0-8"):
        assert parse_draft_length(text).label == text
    assert parse_draft_length("adaptive") == AdaptiveDraftLength()
    assert parse_draft_length("6-8") == AdaptiveDraftLength(minimum=6, maximum=8, start=6)
    assert parse_draft_length("1-2") == AdaptiveDraftLength(minimum=1, maximum=2, start=2)
    for bad in ("load0-0", "load8-2", "load 0-8", "loads", "-1", "8-2", "0-3", "four", "4.0", ""):
        with pytest.raises(InputError):
            parse_draft_length(bad)


def test_limits_and_numbers() -> None:
    assert parse_batch_limits("draft=12, verify=24") == {Step.DRAFT: 12, Step.VERIFY: 24}
    assert parse_numbers("x", "4,1, 2,4") == [1, 2, 4]
    for bad in ("", "draft", "draft=0", "draft=x", "decode=2", "draft=1,,verify=2"):
        with pytest.raises(InputError):
            parse_batch_limits(bad)
    for bad in ("", "0", "1,,2", "a"):
        with pytest.raises(InputError):
            parse_numbers("x", bad)
    assert parse_numbers("x", "4,0", least=0) == [0, 4]


ALPHAS = {"pair": "permutation:tiny+tiny-draft:alpha=0.5,0.8", "architectures": ["pd"], "mode": "live"}


def test_a_permutation_pair_is_asked_for_one_of_its_alphas() -> None:
    asked = {**ALPHAS, "concurrencies": [1], "workload": {"alpha": 0.5}}
    (point,) = Experiment.from_dict(asked).points()
    assert point.workloads[0].info["alpha"] == 0.5
    with pytest.raises(InputError, match=r"workload\.alpha = 0\.6: the pair .* has 0\.5, 0\.8"):
        Experiment.from_dict({**asked, "workload": {"alpha": 0.6}})
    with pytest.raises(InputError, match=r"workload\.alpha = 0\.5: acceptance is chosen for a permutation pair only"):
        Experiment.from_dict({**asked, "pair": "embedded"})


def test_an_open_loop_may_change_its_rate() -> None:
    asked = {**ALPHAS, "rates": [4.0], "workload": {"rate_steps": [1.0, 3.0]}}
    assert Experiment.from_dict(asked).points()[0].workloads[0].info["rate_steps"] == [1.0, 3.0]
    with pytest.raises(InputError, match=r"workload\.rate_steps"):
        Experiment.from_dict({**asked, "rates": [], "concurrencies": [2]})


def test_a_draft_length_that_follows_the_load_needs_a_profile_even_live() -> None:
    asked = {**ALPHAS, "concurrencies": [1], "k": ["load0-4"]}
    with pytest.raises(InputError, match="profile = None: a draft length that follows the load weighs costs"):
        Experiment.from_dict(asked)
    assert Experiment.from_dict({**asked, "profile": "somewhere"}).weighs
    assert Experiment.from_dict({**asked, "calibration": {}}).calibration_points()["draft_lengths"] == [0, 1, 2, 3, 4]


def test_a_calibration_measures_every_draft_length_that_is_used() -> None:
    def lengths(k: list[str], **calibration: object) -> list[int]:
        values = {"architectures": ["pd"], "k": k, "concurrencies": [1], "calibration": calibration}
        return Experiment.from_dict(values).calibration_points()["draft_lengths"]

    assert lengths(["4"]) == [4]
    assert lengths(["0", "2-4"]) == [0, 2, 3, 4]
    assert lengths(["0"]) == [0, 1]  # a profile has drafts too
    assert lengths(["0", "2-8"], draft_lengths=[0, 2, 8]) == [0, 2, 8]
    for wrong in ([1, 8], [0, 4]):
        with pytest.raises(InputError, match="the architectures use 0 to 8"):
            lengths(["0", "2-8"], draft_lengths=wrong)
    assert lengths(["load0-8"], draft_lengths=[0, 1, 8]) == [0, 1, 8]
    with pytest.raises(InputError, match="and from the least draft"):
        lengths(["load0-8"], draft_lengths=[0, 2, 8])


def test_workers_belong_to_the_lanes_that_carry_requests_or_to_all() -> None:
    assert changed(ARCHITECTURES["baseline"], workers=8).lanes[0].workers == 8
    assert [lane.workers for lane in changed(ARCHITECTURES["pdv"], workers=2).lanes] == [2, 2, 2]
    assert changed(ARCHITECTURES["pdv"]) == ARCHITECTURES["pdv"]


def test_acceptance_texts() -> None:
    assert parse_acceptance("profile") == AcceptanceChoice("profile")
    assert parse_acceptance("0.8") == AcceptanceChoice("independent", (0.8,))
    assert parse_acceptance("1") == AcceptanceChoice("independent", (1.0,))
    assert parse_acceptance("0.8, 0.6,.5") == AcceptanceChoice("positions", (0.8, 0.6, 0.5))
    assert parse_acceptance("0.7±0.1") == parse_acceptance("0.7 +- 0.1") == AcceptanceChoice("spread", (0.7, 0.1))
    assert parse_acceptance("[0.9, 0.5]") == parse_acceptance("0.9,0.5")  # as vLLM writes them
    assert parse_acceptance("[0.9]") == AcceptanceChoice("positions", (0.9,))
    kind, (alpha,), _ = parse_acceptance("length=3.3616,k=4")
    assert (kind, alpha) == ("independent", pytest.approx(0.8, abs=1e-9))
    assert parse_acceptance("length = 1, k = 8") == AcceptanceChoice("independent", (0.0,))
    bad_lengths = ("length=0.99,k=4", "length=5.01,k=4", "length=1,k=0", "length=3", "length=,k=4")
    for bad in ("", "often", "1.1", "-0.2", "0.5,0.6", "[0.5,0.6]", "[]", "0.5±", "nan", "0.8;0.6", *bad_lengths):
        with pytest.raises(InputError, match="acceptance"):
            parse_acceptance(bad)


@pytest.mark.parametrize("twice", [{"concurrencies": [2, 2]}, {"k": ["4", "04"]}, {"architectures": ["pdv", "pdv"]}])
def test_cells_of_one_name_are_refused_whatever_is_there_twice(twice: dict[str, list[object]]) -> None:
    with pytest.raises(InputError, match="cells = 'pdv-c2-k4': two cells have this name"):
        Experiment.from_dict({**GOOD, "architectures": ["pdv"], "concurrencies": [2], **twice})


def test_workloads_can_be_keys_of_caches() -> None:
    steps = checked(WorkloadConfig, {"rate_steps": [1.0, 2.0]}, "workload")
    assert hash(steps) != hash(WorkloadConfig())
    assert WorkloadConfig().model_dump(exclude_none=True).keys().isdisjoint({"rate_steps", "cv"})
