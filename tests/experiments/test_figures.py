"""Figures are complete files, and what they draw is right."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from engines.errors import InputError
from engines.policy.architecture import BASELINE, Segment
from engines.policy.changes import changed
from engines.record.metrics import PARTS, steady_window, summary
from engines.record.run import Run
from engines.workload.workload import FixedLength, make_workload
from experiments.compare.explain import explanations
from experiments.figures.acceptance import drawn_rates, measured_rates, request_alphas
from experiments.figures.draw import (
    acceptance,
    busiest,
    contention,
    decomposition,
    draw_all,
    error_distribution,
    errors_over_load,
    explained,
    load_curves,
    predicted_against_measured,
    stage_costs,
    timeline,
)
from experiments.figures.errors import errors
from experiments.figures.fidelity import family
from experiments.figures.style import PART_COLOURS, SEGMENT_COLOURS, architecture_looks, level_axis, shown, source
from experiments.runner.predictions import predictions
from sim.acceptance import Independent, PerPosition, PerRequestSpread, Tapes
from sim.costs import CostModel
from sim.engine import simulate
from sim.routers import Fleet
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


def test_draft_lengths_are_no_repeats_but_lines_in_a_row_per_architecture(tmp_path: Path) -> None:
    def height(runs: list[Run]) -> int:
        check(load_curves([], runs, tmp_path), "load")
        return int.from_bytes((tmp_path / "load.png").read_bytes()[20:24], "big")

    fixed = [synthetic.simulated(name) for name in ("pd", "baseline")]
    follows = changed(synthetic.ARCHITECTURES["pd"], draft_length="load4-4")
    assert height([*fixed, synthetic.simulated(follows)]) > 1.6 * height(fixed)


def test_the_error_is_drawn_over_the_load(tmp_path: Path) -> None:
    lives = [synthetic.live("pd", f"live{rate}", rate=rate) for rate in (2.0, 8.0)]
    simulations = [synthetic.simulated("pd", rate=rate) for rate in (2.0, 8.0)]
    check(errors_over_load(lives, simulations, tmp_path), "errors")
    assert errors_over_load(lives[:1], simulations, tmp_path) == []  # no line has a single point
    assert errors_over_load(lives, [], tmp_path) == []
    found = errors([*lives, lives[0]], simulations)
    assert found["level"].tolist() == [2.0, 2.0, 8.0]
    live, simulated = (summary(runs[1])["ttft_s.mean"] for runs in (lives, simulations))
    assert found["ttft_s.mean"].iloc[2] == pytest.approx(100 * (simulated - live) / live)


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


def test_an_architecture_always_has_the_same_look() -> None:
    everything = architecture_looks(["mine", "pdv", "pd", "baseline", "other"])
    assert list(everything) == ["baseline", "pd", "pdv", "mine", "other"]
    for what in ("colour", "marker"):
        assert len({getattr(look, what) for look in everything.values()}) == 5
    assert len({everything[name].line for name in ("baseline", "pd", "pdv")}) == 3
    assert architecture_looks(["pdv"])["pdv"] == everything["pdv"]
    assert [shown(name) for name in everything] == ["baseline", "PD", "PDV", "mine", "other"]
    assert set(PART_COLOURS) == set(PARTS)
    assert set(SEGMENT_COLOURS) == set(Segment)


@pytest.mark.parametrize(
    ("levels", "scale"),
    [
        ([1, 3, 5, 7], "linear"),
        ([1, 3, 5, 10, 16, 32, 64, 256], "log"),
        ([0.5 * 2**i for i in range(16)], "log"),
        ([*range(1, 65)], "log"),
    ],
)
def test_the_axis_of_a_load_has_room_for_its_ticks(levels: list[float], scale: str) -> None:
    panel = Figure().subplots()
    level_axis(panel, levels)
    assert panel.get_xscale() == scale
    ticks = panel.get_xticks()
    assert set(ticks) <= set(levels)
    assert ticks[-1] == levels[-1]
    assert 4 <= len(ticks) <= 8
    places = np.log(ticks) if scale == "log" else ticks
    whole = np.log(levels[-1] / levels[0]) if scale == "log" else levels[-1] - levels[0]
    assert np.diff(places).min() > whole / 7.01


def test_a_timeline_shows_the_steady_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all clients have been served once, and not the ramp before."""
    drawn: list[tuple[float, float]] = []
    module = sys.modules["experiments.figures.timeline"]  # the package gives the function this name
    monkeypatch.setattr(module, "_draw", lambda *given: drawn.append((given[3], given[5])))
    run = synthetic.live("pdv", count=40)
    start_s, _ = steady_window(run)
    assert start_s > 0
    timeline([run], tmp_path)
    assert drawn == [(start_s, start_s)]


def test_the_source_names_device_pair_dates_and_draft_length() -> None:
    first = synthetic.live("pdv")
    later = dataclasses.replace(first, info={**first.info, "date": "2026-02-03T10:00:00"})
    said = source([later, first, synthetic.simulated("pdv")])
    assert said == "device: made-up device · pair: made-up pair · 2026-01-02 to 2026-02-03 · k = 4"
    assert "2026-01-02 · k = 4" in source((), synthetic.profile().info)


def test_the_source_says_what_was_simulated_otherwise_than_live() -> None:
    simulated = synthetic.simulated(synthetic.ARCHITECTURES["pdv"].replace(slots=2), seed=5)
    assert source([synthetic.live("pdv"), simulated]).endswith(" · simulated with other settings than live: slots")


def test_figures_of_runs_that_mean_nothing_side_by_side_are_refused(tmp_path: Path) -> None:
    live, simulated = synthetic.live("pdv"), synthetic.simulated("pdv")
    elsewhere = dataclasses.replace(live, info={**live.info, "device": "another device"})
    for lives, simulations in (([simulated], [simulated]), ([live], [live]), ([elsewhere], [simulated])):
        with pytest.raises(InputError):
            draw_all(lives, simulations, None, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


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


def test_a_timeline_of_a_fleet_has_rows_for_every_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("experiments.figures.style.save", lambda figure, *_: figures.append(figure))
    load = make_workload(12, FixedLength(32), FixedLength(12), concurrency=8)
    run = simulate(BASELINE, load, synthetic.profile(), Independent(0.7), fleet=Fleet(2))
    timeline([run], tmp_path, start_s=0, length_s=run.duration_s)
    (panel,) = figures[0].axes
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels == [f"device {replica}, worker {worker}" for replica in (0, 1) for worker in range(4)]
    assert len(panel.collections) == len(run.spans)


def test_errors_are_drawn_for_replays_and_blind_simulations(tmp_path: Path) -> None:
    lives = [synthetic.live(name, f"live-{name}") for name in ("baseline", "pd", "pdv")]
    simulations = predictions(lives, synthetic.profile())
    check(error_distribution(lives, simulations, tmp_path), "error_distribution")
    check(predicted_against_measured(lives, simulations, tmp_path), "predicted_measured")
    check(explained(explanations(lives, simulations, synthetic.profile()), tmp_path), "explained")


def test_variants_of_an_architecture_are_of_its_family() -> None:
    for name in ("baseline", "pd", "pdv"):
        assert family(synthetic.simulated(synthetic.ARCHITECTURES[name].replace(name="mine"))) == name


def test_bars_of_an_explanation_add_up_to_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("experiments.figures.style.save", lambda figure, *_: figures.append(figure))
    lives = [synthetic.live("pd", "one", concurrency=1), synthetic.live("pd", "three", concurrency=3)]
    found = explanations(lives, predictions(lives, synthetic.profile()), synthetic.profile())
    explained(found, tmp_path)
    (panel,) = figures[0].axes
    widths = {
        place: sum(bar.get_width() for bar in panel.patches if round(bar.get_y() + 0.36) == place) for place in (0, 1)
    }
    (marks,) = [line for line in panel.lines if line.get_marker() == "D"]
    assert [widths[0], widths[1]] == pytest.approx(list(marks.get_xdata()))
    assert sorted(widths.values()) == pytest.approx(sorted(100 * one.error for one in found))
