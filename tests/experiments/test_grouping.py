"""Cells that are compared share an engine and a period of time, where they can."""

from __future__ import annotations

from typing import Any

from experiments.runner.config import Experiment
from experiments.runner.grouping import by_engine, widest
from tests.experiments.live_backend import GRID

SLOTS: dict[str, Any] = {"base": "pd", "slots": 6}
CALIBRATION = {**GRID["calibration"], "draft_lengths": [0, 1, 8]}


def grouped(*architectures: Any, context: int | None = 100, **change: Any) -> list[list[str]]:
    """The names of the cells of each engine, the one that it is started for marked with a star."""
    values = {**GRID, "architectures": list(architectures), "calibration": CALIBRATION, **change}
    experiment = Experiment.from_dict(values | ({} if context is None else {"max_context": context}))
    groups = by_engine(experiment.points(), context is not None)
    return [[point.name + "*" * (point is widest(group)) for point in group] for group in groups]


def test_each_load_comes_with_all_draft_lengths_in_turn() -> None:
    assert grouped(SLOTS, k=["0", "2", "1-5", "load0-6"]) == [
        ["pd-c1-k0", "pd-c1-k2", "pd-c1-k1-5", "pd-c1-kload0-6*"]
        + ["pd-c3-k0", "pd-c3-k2", "pd-c3-k1-5", "pd-c3-kload0-6"]
    ]


def test_what_no_draft_length_covers_has_an_engine_of_its_own() -> None:
    assert grouped(SLOTS, k=["0", "2", "3", "2-4", "3-5"], concurrencies=[1]) == [
        ["pd-c1-k0*"],
        ["pd-c1-k2", "pd-c1-k3", "pd-c1-k2-4*"],
        ["pd-c1-k3-5*"],
    ]


def test_what_follows_the_load_needs_an_engine_that_does() -> None:
    assert grouped(SLOTS, k=["1-5", "load1-5"], concurrencies=[1]) == [["pd-c1-k1-5", "pd-c1-kload1-5*"]]
    assert grouped(SLOTS, k=["2", "1-5", "load1-4"], concurrencies=[1]) == [
        ["pd-c1-k2", "pd-c1-k1-5*"],
        ["pd-c1-kload1-4*"],
    ]


def test_other_names_share_and_other_settings_do_not() -> None:
    named, fewer = {**SLOTS, "name": "named"}, {**SLOTS, "slots": 5, "name": "fewer"}
    assert grouped(SLOTS, named, fewer, k=["2", "1-3"], concurrencies=[1]) == [
        ["pd-c1-k2", "pd-c1-k1-3*", "named-c1-k2", "named-c1-k1-3"],
        ["fewer-c1-k2", "fewer-c1-k1-3*"],
    ]


def test_without_named_slots_or_context_no_draft_length_is_shared() -> None:
    alone = [["pd-c1-k2*", "pd-c3-k2"], ["pd-c1-k1-3*", "pd-c3-k1-3"]]
    assert grouped(SLOTS, k=["2", "1-3"], context=None) == grouped("pd", k=["2", "1-3"]) == alone
