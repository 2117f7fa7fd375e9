"""Architectures are values: the built-in ones say what the design's table says, and bad ones are refused."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given

from engines.errors import InputError
from engines.policy.architecture import (
    ARCHITECTURES,
    BASELINE,
    PD,
    PDV,
    TARGET_ONLY,
    Architecture,
    Lane,
    Segment,
    Stage,
    Step,
    load_architecture,
)
from engines.policy.draft_length import AdaptiveDraftLength, FixedDraftLength
from tests.engines.scenarios import FOURTH, FOURTH_TOML, architectures

DECODE_FIRST = (Stage.DRAFT, Stage.VERIFY, Stage.PREFILL)


def _lane(architecture: Architecture, name: str) -> Lane:
    (lane,) = (lane for lane in architecture.lanes if lane.name == name)
    return lane


def test_baseline_is_one_pool_of_four_workers_that_carry_requests_alone() -> None:
    (lane,) = BASELINE.lanes
    assert lane.workers == 4
    assert lane.run_to_completion
    assert lane.steps == {Step.PREFILL: 1, Step.DRAFT: 1, Step.VERIFY: 1}
    assert lane.stream == 0
    assert BASELINE.priority == ()
    assert BASELINE.hybrid_at_or_below == 0


def test_pd_is_prefill_beside_an_atomic_decode() -> None:
    assert [lane.name for lane in PD.lanes] == ["prefill", "decode"]
    assert _lane(PD, "prefill").steps == {Step.PREFILL: 1}
    assert _lane(PD, "decode").steps == {Step.DRAFT_VERIFY: 6}
    assert {lane.name: lane.stream for lane in PD.lanes} == {"prefill": 0, "decode": 1}
    assert PD.priority == DECODE_FIRST
    assert (PD.verify_first_above, PD.hybrid_at_or_below) == (None, 0)


def test_pdv_is_three_lanes_with_a_dynamic_priority_and_a_hybrid_mode() -> None:
    assert _lane(PDV, "prefill").steps == {Step.PREFILL: 1}
    assert _lane(PDV, "draft").steps == {Step.DRAFT: 6}
    assert _lane(PDV, "verify").steps == {Step.VERIFY: 12}
    assert {lane.name: lane.stream for lane in PDV.lanes} == {"draft": 0, "verify": 1, "prefill": 2}
    assert PDV.priority == DECODE_FIRST
    assert (PDV.verify_first_above, PDV.hybrid_at_or_below) == (2, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_what_they_share(architecture: Architecture) -> None:
    assert architecture.draft_length == FixedDraftLength(0 if architecture is TARGET_ONLY else 4)
    assert architecture.devices == (0,)
    assert architecture.permits_on(0) == sum(lane.workers for lane in architecture.lanes)
    assert architecture.replace(permits=1).permits_on(0) == 1


def test_target_only_is_pd_without_drafts() -> None:
    assert PD.replace(name="target-only", draft_length=FixedDraftLength(0)) == TARGET_ONLY
    assert not TARGET_ONLY.drafts
    assert PD.drafts
    assert not PDV.replace(draft_length=FixedDraftLength(0)).drafts


def test_permits_count_the_workers_of_their_own_device() -> None:
    verify = Lane("verify", {Step.VERIFY: 12}, device=1)
    apart = PDV.replace(lanes=(*PDV.lanes[:1], verify, *PDV.lanes[2:]), hybrid_at_or_below=0)
    assert apart.devices == (0, 1)
    assert (apart.permits_on(0), apart.permits_on(1)) == (2, 1)


def test_prefill_and_the_atomic_step_run_draft_and_target_segments() -> None:
    assert Step.PREFILL.segments == (Segment.PREFILL_DRAFT, Segment.PREFILL_TARGET)
    assert Step.DRAFT_VERIFY.segments == (Segment.DRAFT, Segment.VERIFY)
    assert (Step.DRAFT.segments, Step.VERIFY.segments) == ((Segment.DRAFT,), (Segment.VERIFY,))
    assert PD.lane_for(Stage.DRAFT) == (_lane(PD, "decode"), Step.DRAFT_VERIFY)


def test_batch_limits_can_be_swept() -> None:
    swept = PDV.with_batch_limits({Step.DRAFT: 64, Step.PREFILL: 8})
    assert [lane.steps for lane in swept.lanes] == [{Step.DRAFT: 64}, {Step.VERIFY: 12}, {Step.PREFILL: 8}]


@given(architecture=architectures())
def test_any_architecture_survives_toml(architecture: Architecture) -> None:
    assert Architecture.from_dict(tomllib.loads(tomli_w.dumps(architecture.to_dict()))) == architecture


def test_a_fourth_architecture_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fourth.toml"
    path.write_text(FOURTH_TOML)
    assert load_architecture(str(path)) == FOURTH
    assert FOURTH.lanes[0].steps == {Step.PREFILL: 1, Step.DRAFT: 6}
    assert load_architecture("pdv") is PDV


def test_an_adaptive_draft_length_is_a_table() -> None:
    adaptive = Architecture.from_dict({**PD.to_dict(), "draft_length": {"start": 3, "maximum": 5}})
    assert adaptive.draft_length == AdaptiveDraftLength(start=3, maximum=5)


LANE = {"name": "decode", "steps": {"draft+verify": 6}}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("name", {"name": 5}),
        ("name", {"name": ""}),
        ("lanes", {"lanes": []}),
        ("lanes", {"lanes": "prefill"}),
        ("lanes", {"lanes": ["prefill", "decode"]}),
        ("lanes", {"lanes": [LANE]}),  # nobody prefills
        ("lanes", {"lanes": [LANE, LANE]}),  # one name twice
        ("priority", {"priority": 5}),
        ("priority", {"priority": "draft"}),
        ("priority", {"priority": ["draft", "prefill"]}),
        ("priority", {"priority": ["draft", "verify", "decode"]}),
        ("verify_first_above", {"verify_first_above": 2}),  # PD has no verify step of its own
        ("verify_first_above", {"verify_first_above": -1}),
        ("hybrid_at_or_below", {"hybrid_at_or_below": 1}),  # nor a draft step
        ("hybrid_at_or_below", {"hybrid_at_or_below": -1}),
        ("slots", {"slots": 0}),
        ("slots", {"slots": 1_000_000_000}),
        ("slots", {"slots": "64"}),
        ("lanes.decode.workers", {"lanes": [{**LANE, "workers": 100_000_000}]}),
        ("permits", {"permits": 0}),
        ("queue_limit", {"queue_limit": 1.5}),
        ("queue_limit", {"queue_limit": True}),
        ("draft_length", {"draft_length": "long"}),
        ("draft_length", {"draft_length": 10**6}),
        ("draft_length.maximum", {"draft_length": {"maximum": 10**6}}),
        ("draft_length.window", {"draft_length": {"window": 2**63}}),
        ("permits", {"permits": 10**400}),
        ("draft_length.window", {"draft_length": {"window": "wide"}}),
        ("draft_length.speed", {"draft_length": {"speed": 3}}),
        ("streams", {"streams": 3}),
    ],
)
def test_a_bad_value_is_named(field: str, change: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Architecture.from_dict({**PD.to_dict(), **change})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("lanes.name", {"name": 3}),
        ("lanes.decode.steps", {"steps": {}}),
        ("lanes.decode.steps", {"steps": "draft"}),
        ("lanes.decode.steps", {"steps": {"decode": 6}}),
        ("lanes.decode.steps.draft+verify", {"steps": {"draft+verify": 0}}),
        ("lanes.decode.steps", {"run_to_completion": True}),  # with a batch limit of 6
        ("lanes.decode.run_to_completion", {"run_to_completion": "no"}),
        ("lanes.decode.workers", {"workers": 0}),
        ("lanes.decode.stream", {"stream": -1}),
        ("lanes.decode.stream", {"stream": 2**31}),
        ("lanes.decode.device", {"device": 2**31}),
        ("lanes.decode.stream_priority", {"stream_priority": -(2**31)}),
        ("lanes.decode.steps.draft+verify", {"steps": {"draft+verify": 2**31}}),
        ("lanes.decode.stream_priority", {"stream_priority": "high"}),
        ("lanes.decode.stream_priority", {"stream_priority": -(2**40)}),
        ("lanes.decode.device", {"device": 2**63}),
        ("lanes.decode.device", {"device": "cuda"}),
        ("lanes.batch", {"batch": 6}),
    ],
)
def test_a_bad_value_of_a_lane_is_named(field: str, change: dict[str, Any]) -> None:
    lanes = [{"name": "prefill", "steps": {"prefill": 1}}, {**LANE, **change}]
    with pytest.raises(InputError) as caught:
        Architecture.from_dict({"name": "mine", "lanes": lanes})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "values"), [("name", {"lanes": [LANE]}), ("lanes.steps", {"lanes": [{"name": "a"}]})]
)
def test_what_is_missing_is_named(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Architecture.from_dict(values)
    assert caught.value.field == field


def test_hybrid_mode_needs_draft_and_verify_on_one_device() -> None:
    verify = Lane("verify", {Step.VERIFY: 12}, device=1)
    with pytest.raises(InputError, match="hybrid_at_or_below = 1: put the lanes that draft and verify on one device"):
        PDV.replace(lanes=(*PDV.lanes[:1], verify, *PDV.lanes[2:]))


def test_files_that_hold_no_architecture(tmp_path: Path) -> None:
    broken, binary = tmp_path / "broken.toml", tmp_path / "binary.toml"
    broken.write_text("name = ")
    binary.write_bytes(b"\xff\xfe\x00")
    for name, problem in [
        ("pvd", "use baseline, pd, pdv, target-only or the path"),
        (str(tmp_path / "none.toml"), "cannot read the file"),
        (str(broken), "not valid TOML"),
        (str(binary), "not valid TOML"),
    ]:
        with pytest.raises(InputError, match=problem):
            load_architecture(name)


@pytest.mark.parametrize(
    "name", ["../victim", "a/b", "a\\b", ".", "..", ".hidden", "-x", "a\nb", "a\0", " ", "x" * 101, "\U0001f600" * 60]
)
def test_a_name_that_could_not_be_a_folders_is_refused_everywhere(name: str) -> None:
    (worker,) = BASELINE.lanes
    with pytest.raises(InputError, match="name = "):
        PDV.replace(name=name)
    with pytest.raises(InputError, match=r"lanes\.name = "):
        dataclasses.replace(worker, name=name)
    with pytest.raises(InputError, match="name = "):
        Architecture.from_dict({**PDV.to_dict(), "name": name})


@pytest.mark.parametrize("name", ["PD 1+6, wide", "pdv_2.0", "überholt", "x" * 100])
def test_ordinary_names_are_good(name: str) -> None:
    assert PDV.replace(name=name).name == name
