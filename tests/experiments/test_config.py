"""Experiments as TOML, and the short texts in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.errors import InputError
from engines.policy.architecture import ARCHITECTURES, Step
from engines.policy.changes import changed, parse_batch_limits
from engines.policy.draft_length import AdaptiveDraftLength, FixedDraftLength, parse_draft_length
from engines.workload.lengths import parse_lengths
from engines.workload.workload import FixedLength, LogNormalLength, UniformLength
from experiments.commands.arguments import parse_numbers
from experiments.runner.config import CONFIGS, Experiment
from experiments.runner.predict import AcceptanceChoice, parse_acceptance

OPEN: dict[str, Any] = {"concurrencies": [], "rates": [2.0]}
TRACED: dict[str, Any] = {"concurrencies": []}
GOOD: dict[str, Any] = {"architectures": ["pd", "pdv"], "concurrencies": [1, 4], "workload": {"requests": 6}}


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIGS.glob("*.toml"))])
def test_the_shipped_configs_are_good(name: str) -> None:
    points = list(Experiment.load(name).points())
    assert len({point.name for point in points}) == len(points)
    assert {point.architecture.name for point in points} == set(ARCHITECTURES)


def test_the_demo_is_what_was_promised() -> None:
    demo = Experiment.load("demo")
    assert demo.concurrencies == [1, 3, 5, 10]
    assert demo.repeats == 3
    limits = [limit for a in demo.layouts() for lane in a.lanes for limit in lane.steps.values()]
    assert max(demo.calibration.batches) >= max(limits)  # no cell needs extrapolation


def test_points_are_the_grid_with_loads_outermost() -> None:
    points = list(Experiment.from_dict({**GOOD, "k": ["2", "3-5"]}).points())
    assert [p.name for p in points[:4]] == ["pd-c1-k2", "pd-c1-k3-5", "pdv-c1-k2", "pdv-c1-k3-5"]
    assert len(points) == 8
    assert points[-1].workload.concurrency == 4


def test_busy_cells_get_more_requests_and_the_same_first_ones() -> None:
    config = {**GOOD, "workload": {"requests": 6, "requests_per_client": 3, "output_tokens": "16-64"}}
    few, *_, many = Experiment.from_dict(config).points()
    assert (len(few.workload.requests), len(many.workload.requests)) == (6, 12)
    assert many.workload.requests[:6] == few.workload.requests


def test_rates_and_traces_are_loads_too(tmp_path: Path) -> None:
    rates = {"architectures": ["pd"], "rates": [2.0, 4.5]}
    assert [p.name for p in Experiment.from_dict(rates).points()] == ["pd-r2-k4", "pd-r4.5-k4"]
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "prompt_tokens": 20, "output_tokens": 10}\n')
    traced = {"architectures": ["pd"], "workload": {"trace": str(trace)}}
    (point,) = Experiment.from_dict(traced).points()
    assert (point.name, point.workload.requests[0].prompt_tokens) == ("pd-trace-k4", 20)


def test_a_trace_is_served_whole_with_the_seed_and_temperature_of_the_experiment(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "prompt_tokens": 20, "output_tokens": 10}\n' * 40)
    config = {"architectures": ["pd"], "seed": 5, "workload": {"trace": str(trace), "temperature": 0.5}}
    (point,) = Experiment.from_dict(config).points()
    assert [(r.seed, r.temperature) for r in point.workload.requests] == [(5, 0.5)] * 40
    config["workload"]["requests"] = 3  # type: ignore[index]
    (point,) = Experiment.from_dict(config).points()
    assert len(point.workload.requests) == 3


def test_architectures_can_be_changed_or_described_in_place(tmp_path: Path) -> None:
    described = ARCHITECTURES["pd"].replace(name="mine").to_dict()
    changed = {"base": "pdv", "name": "wide", "batch_limit": "draft=12,verify=24", "slots": 9, "draft_length": "2-6"}
    wide, mine = Experiment.from_dict({**GOOD, "architectures": [changed, described]}).layouts()
    assert (wide.name, wide.slots, wide.draft_length.maximum) == ("wide", 9, 6)
    assert wide.lanes[1].steps == {Step.VERIFY: 24}
    assert mine == ARCHITECTURES["pd"].replace(name="mine")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"architectures": []}, "architectures"),
        ({"architectures": ["pvd"]}, "architecture"),
        ({"architectures": [{"base": "pd", "colour": 3}]}, "architectures colour"),
        ({"architectures": [{"name": "x", "lanes": []}]}, "lanes"),
        ({"architectures": ["pd", "pd"]}, "cells"),
        ({"architectures": [{"base": "pd", "slots": "auto"}]}, "architectures slots"),
        ({"concurrencies": [0]}, "concurrencies.0"),
        ({"concurrencies": []}, "config"),
        ({"rates": [2.0]}, "config"),
        ({"repeats": 0}, "repeats"),
        ({"seed": -1}, "seed"),
        ({"k": ["0"]}, "draft_length"),
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
    assert parse_draft_length("adaptive") == AdaptiveDraftLength()
    assert parse_draft_length("6-8") == AdaptiveDraftLength(minimum=6, maximum=8, start=6)
    assert parse_draft_length("1-2") == AdaptiveDraftLength(minimum=1, maximum=2, start=2)
    for bad in ("0", "-1", "8-2", "0-3", "four", "4.0", ""):
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
    for bad in ("", "often", "1.1", "-0.2", "0.5,0.6", "0.5±", "nan", "0.8;0.6"):
        with pytest.raises(InputError, match="acceptance"):
            parse_acceptance(bad)


@pytest.mark.parametrize("twice", [{"concurrencies": [2, 2]}, {"k": ["4", "04"]}, {"architectures": ["pdv", "pdv"]}])
def test_cells_of_one_name_are_refused_whatever_is_there_twice(twice: dict[str, list[object]]) -> None:
    with pytest.raises(InputError, match="cells = 'pdv-c2-k4': two cells have this name"):
        Experiment.from_dict({"architectures": ["pdv"], "concurrencies": [2], **twice})
