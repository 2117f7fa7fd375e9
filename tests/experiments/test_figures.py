"""Figures are complete files, and what they draw is right."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from engines.architecture import Segment
from engines.metrics import PARTS
from experiments.figures import acceptance, busiest, contention, decomposition, load_curves, stage_costs, timeline
from experiments.figures.acceptance import drawn_rates, measured_rates, request_alphas
from experiments.figures.style import PART_COLOURS, SEGMENT_COLOURS, architecture_colours, source
from sim.acceptance import Independent, PerPosition, PerRequestSpread, Tapes
from sim.costs import CostModel
from sim.engine import simulate
from tests.experiments import synthetic


def check(paths: list[Path], name: str) -> None:
    """Both files are there, whole, and of their kind."""
    assert [path.name for path in paths] == [f"{name}.pdf", f"{name}.png"]
    pdf, png = (path.read_bytes() for path in paths)
    assert pdf.startswith(b"%PDF")
    assert b"%%EOF" in pdf[-20:]
    assert png.startswith(b"\x89PNG")
    assert b"IEND" in png[-12:]
    assert min(len(pdf), len(png)) > 5000


def test_open_loops_are_drawn_over_the_rate(tmp_path: Path) -> None:
    lives = [synthetic.live("pd", f"live{rate}", rate=rate) for rate in (2.0, 8.0)]
    simulations = [synthetic.simulated("pd", rate=rate) for rate in (2.0, 8.0)]
    check(load_curves(lives, simulations, tmp_path), "load")
    check(decomposition(lives, simulations, tmp_path), "decomposition")


def test_a_profile_is_drawn_without_any_run(tmp_path: Path) -> None:
    profile = synthetic.profile()
    check(stage_costs(profile, CostModel(profile), tmp_path), "stage_costs")
    check(contention(profile, tmp_path), "contention")
    check(acceptance(profile, [], tmp_path), "acceptance")


def test_a_timeline_can_look_at_any_window(tmp_path: Path) -> None:
    live, simulated = synthetic.live("pdv"), synthetic.simulated("pdv")
    check(timeline([live, simulated], tmp_path, start_s=0.05, length_s=0.1, name="window"), "window")
    beyond = live.duration_s + 10
    check(timeline([live], tmp_path, start_s=beyond, name="beyond"), "beyond")


def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    contention(synthetic.profile(), tmp_path)
    assert dict(mpl.rcParams) == before


def test_an_architecture_always_has_the_same_colour() -> None:
    everything = architecture_colours(["mine", "pdv", "pd", "baseline", "other"])
    assert list(everything) == ["baseline", "pd", "pdv", "mine", "other"]
    assert len(set(everything.values())) == 5
    assert architecture_colours(["pdv"])["pdv"] == everything["pdv"]
    assert set(PART_COLOURS) == set(PARTS)
    assert set(SEGMENT_COLOURS) == set(Segment)


def test_the_source_names_device_pair_dates_and_draft_length() -> None:
    first = synthetic.live("pdv")
    later = dataclasses.replace(first, info={**first.info, "date": "2026-02-03T10:00:00"})
    said = source([later, first, synthetic.simulated("pdv")])
    assert said == "device: made-up device · pair: made-up pair · 2026-01-02 to 2026-02-03 · k = 4"
    assert "2026-01-02 · k = 4" in source((), synthetic.profile().info)


def test_models_are_drawn_as_their_closed_forms_say() -> None:
    assert drawn_rates(Independent(0.5), 3) == pytest.approx([0.5, 0.25, 0.125], abs=0.02)
    assert drawn_rates(PerPosition((0.9, 0.3)), 2) == pytest.approx([0.9, 0.3], abs=0.02)
    # Where requests differ, those that come far are the good ones: the rates fall ever more slowly.
    spread, equal = drawn_rates(PerRequestSpread(0.6, 0.3), 4), drawn_rates(Independent(0.6), 4)
    assert spread[3] / spread[1] > equal[3] / equal[1] + 0.1


def test_measured_acceptance_is_that_of_the_tapes() -> None:
    """Every second draft is right, so no step accepts two, and alpha is 1/2 for steps that begin before a right
    one: with k = 4 the steps of 1, 0, 1, 0, ... accept one draft each."""
    workload = synthetic.workload(count=4)
    tapes = {r.id: np.array([-1, *([1, 0] * 40)[: r.max_tokens - 1]], dtype=np.int8) for r in workload.requests}
    layout = synthetic.ARCHITECTURES["pd"]
    run = simulate(layout, workload, synthetic.profile(), Tapes(tapes))
    rates = measured_rates([run])
    assert rates.to_dict() == pytest.approx({1: 1.0, 2: 0.0, 3: 0.0, 4: 0.0})
    assert request_alphas(synthetic.profile(), [run]).between(0.5, 0.6).all()


def test_alphas_come_from_the_profiles_tapes_where_no_run_is() -> None:
    tapes = {0: np.array([-1, 1, 1, 0, 1], dtype=np.int8), 1: np.array([-1], dtype=np.int8)}
    profile = dataclasses.replace(synthetic.profile(), tapes=tapes)
    assert request_alphas(profile, []).to_dict() == {0: 0.75}


def test_the_busiest_shared_load_is_shown() -> None:
    lives = [synthetic.live("pd", f"live{c}", concurrency=c) for c in (1, 3, 5)]
    simulations = [synthetic.simulated("pd", name=f"simulated{c}", concurrency=c) for c in (1, 3)]
    assert [(live.name, simulated.name) for live, simulated in busiest(lives, simulations)] == [
        ("live3", "simulated3")
    ]


def test_a_timeline_of_many_workers_is_no_larger_than_a_picture_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("experiments.figures.style.save", lambda figure, *_: figures.append(figure))
    live = synthetic.live("pd")
    live.spans = live.spans.loc[np.zeros(900, dtype=int)].assign(worker=np.arange(900)).reset_index(drop=True)
    timeline([live], tmp_path)
    assert figures[0].get_figheight() * 200 < 2**16
