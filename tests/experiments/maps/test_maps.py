"""Maps: what a cell compares, what its verdict says, and which costs it is simulated with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from engines.policy.architecture import PD, PDV, Segment, Step
from engines.policy.segment_shape import SegmentShape
from experiments.cli import main
from experiments.maps.bootstrap import RATE_ERROR, resampled
from experiments.maps.draft_cost import with_draft_cost
from experiments.maps.grid import LATENCY_P95, THROUGHPUT, Cell, Option, simulated, verdicts
from experiments.maps.questions import FCFS, MAPS, TWO_PD, Map, Panel
from experiments.maps.run import run_map
from sim.costs import CostModel
from tests.experiments import synthetic

SMALL = PD.with_batch_limits({Step.DRAFT_VERIFY: 2})
SLOW = PD.with_batch_limits({Step.DRAFT_VERIFY: 1})
OPTIONS = (Option("a", "a2", SMALL), Option("b", "b1", SLOW), Option("b", "b2", SMALL))
CELLS = tuple(Cell(n, 0.5, OPTIONS, n, 0.5, 16, 12, requests_per_client=2) for n in (1, 4))
PANELS = [panel for question in MAPS.values() for panel in question().panels]


def rows(*values: tuple[float, ...], metric: str = THROUGHPUT) -> pd.DataFrame:
    """One cell: the values of each option, one per replicate."""
    made = [
        {"cell": 0, "option": option, "replicate": replicate, metric: value}
        for option, of in enumerate(values)
        for replicate, value in enumerate(of)
    ]
    return pd.DataFrame(made)


def test_a_side_is_as_good_as_its_best_option() -> None:
    found = verdicts(CELLS[:1], rows((10.0, 12.0), (1.0, 2.0), (20.0, 18.0)), "a").iloc[0]
    assert (found["winner"], found["option"], found["rival_option"]) == ("b", "b2", "b2")
    assert found["gain"] == pytest.approx((2 + 1.5) / 2)
    assert (found["gain_low"], found["gain_high"]) == (1.5, 2.0)
    assert not found["open"]
    assert not found["gain_open"]


def test_a_gain_below_1_says_by_how_much_the_rival_loses() -> None:
    found = verdicts(CELLS[:1], rows((10.0, 10.0), (8.0, 9.0), (1.0, 1.0)), "a").iloc[0]
    assert (found["winner"], found["rival"], found["gain"]) == ("a", "b", pytest.approx(0.85))


def test_a_given_rival_is_compared_even_if_another_is_better() -> None:
    options = (*OPTIONS[:2], Option("c", "c2", SMALL))
    cell = dataclasses.replace(CELLS[0], options=options)
    found = verdicts((cell,), rows((10.0, 10.0), (5.0, 5.0), (20.0, 20.0)), "a", rival="b").iloc[0]
    assert (found["winner"], found["rival"], found["gain"]) == ("c", "b", 0.5)


def test_sides_can_be_joined_and_left_out() -> None:
    options = (*OPTIONS[:2], Option("c", "c2", SMALL))
    cell = dataclasses.replace(CELLS[0], options=options)
    values = rows((10.0, 10.0), (5.0, 5.0), (20.0, 20.0))
    joined = verdicts((cell,), values, "b", sides={"a": "other", "b": "b", "c": "other"}).iloc[0]
    assert (joined["winner"], joined["option"], joined["gain"]) == ("other", "c2", 4.0)
    without = verdicts((cell,), values, "b", sides={"a": "a", "b": "b"}).iloc[0]
    assert (without["winner"], without["gain"]) == ("a", 2.0)


def test_of_times_less_is_better() -> None:
    found = verdicts(CELLS[:1], rows((2.0, 2.0), (1.0, 1.0), (4.0, 4.0), metric=LATENCY_P95), "a", LATENCY_P95).iloc[
        0
    ]
    assert (found["winner"], found["option"], found["gain"]) == ("b", "b1", 2.0)


def test_what_one_replicate_contradicts_is_open() -> None:
    found = verdicts(CELLS[:1], rows((10.0,) * 8, (1.0,) * 8, (12.0,) * 7 + (9.0,)), "a").iloc[0]
    assert (found["agreement"], found["gain_agreement"]) == (7 / 8, 7 / 8)
    assert found["open"]
    assert found["gain_open"]


def test_a_tie_is_open() -> None:
    found = verdicts(CELLS[:1], rows((10.0, 11.0), (1.0, 1.0), (10.0, 11.0)), "a").iloc[0]
    assert found["open"]
    assert found["gain_open"]


def test_options_meet_the_same_load_and_costs() -> None:
    """So options that are alike have the same metrics in every replicate, and replicates differ."""
    found = simulated(CELLS, synthetic.profile(), 2, jobs=1).set_index(["cell", "option", "replicate"])[THROUGHPUT]
    for cell in (0, 1):
        assert found[cell, 0].tolist() == found[cell, 2].tolist()
        assert found[cell, 0, 0] != found[cell, 0, 1]
    assert found[1, 1, 0] < found[1, 0, 0]


def test_replicas_share_the_clients_and_add_up() -> None:
    alone = simulated((Cell(1, 0, (Option("a", "a", SMALL),), 2, 0.5, 16, 12),), synthetic.profile(), 1, jobs=1)
    both = Cell(1, 0, (Option("a", "a", SMALL, replicas=2),), 4, 0.5, 16, 12)
    found = simulated((both,), synthetic.profile(), 1, jobs=1)
    assert found[THROUGHPUT][0] == 2 * alone[THROUGHPUT][0]
    assert found[LATENCY_P95][0] == alone[LATENCY_P95][0]


def test_a_resampled_calibration_stays_within_its_standard_errors() -> None:
    profile = synthetic.profile()
    draws = [resampled(profile, seed) for seed in range(50)]
    factors = np.array([d.stage_costs["mean_ms"] / profile.stage_costs["mean_ms"] for d in draws])
    costs = profile.stage_costs.iloc[0]
    expected = (costs["p95_ms"] - costs["p05_ms"]) / 3.29 / costs["mean_ms"] / costs["repeats"] ** 0.5
    assert factors.std() == pytest.approx(expected, rel=0.1)
    assert factors.mean() == pytest.approx(1, abs=0.002)
    quantiles = draws[3].stage_costs["p50_ms"] / profile.stage_costs["p50_ms"]
    assert quantiles.to_numpy() == pytest.approx(factors[3])
    rates = np.array([d.contention["rate"] / profile.contention["rate"] for d in draws])
    assert rates.std() == pytest.approx(RATE_ERROR, rel=0.1)
    pd.testing.assert_frame_equal(draws[3].stage_costs, resampled(profile, 3).stage_costs)


def test_a_resampled_rate_stays_within_what_a_profile_can_have() -> None:
    profile = synthetic.profile()
    for rate in (1e-4, 1.05):
        at_bound = dataclasses.replace(profile, contention=profile.contention.assign(rate=rate))
        drawn = np.array([resampled(at_bound, seed).contention["rate"] for seed in range(5)])
        assert drawn.min() >= 1e-4
        assert drawn.max() <= 1.05


def test_only_what_the_draft_model_runs_costs_more() -> None:
    costs = CostModel(synthetic.profile())
    dear = with_draft_cost(costs, 3.0)
    draft, verify = SegmentShape.draft(4, 4, 64), SegmentShape.verify(4, 4, 64)
    prefills = [SegmentShape.prefill(segment, 1, 64) for segment in (Segment.PREFILL_DRAFT, Segment.PREFILL_TARGET)]
    ratios = [dear.cost(s, 0.3).duration_s / costs.cost(s, 0.3).duration_s for s in (draft, verify, *prefills)]
    assert ratios == pytest.approx([3, 1, 3, 1])
    assert with_draft_cost(costs, 1.0) is costs


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.name)
def test_every_place_has_one_cell_with_both_sides(panel: Panel) -> None:
    places = [(cell.x, cell.y) for cell in panel.cells]
    assert len(set(places)) == len(places)
    for cell in panel.cells:
        own = {option.side: option.side for option in cell.options}
        sides = {(panel.sides or own).get(side) for side in own}
        assert panel.reference in sides
        assert len(sides) > 1
        assert cell.x == cell.clients
        assert all(option.architecture.slots >= cell.clients for option in cell.options)


def test_draft_lengths_are_the_only_difference_in_the_map_of_speculation() -> None:
    options = MAPS["speculation"]().panels[0].cells[0].options
    assert [o.architecture.draft_length.label for o in options] == [*(o.side for o in options[:-1]), "load0-8"]
    first = options[0].architecture
    assert all(o.architecture == first.replace(draft_length=o.architecture.draft_length) for o in options)
    assert not first.drafts


def test_two_devices_part_the_models() -> None:
    panel = next(panel for panel in PANELS if panel.reference == TWO_PD)
    for option in panel.cells[0].options:
        lanes = option.architecture.lanes
        if option.side == "PDV":
            assert {lane.device for lane in lanes if Step.DRAFT in lane.steps} == {0}
            assert {lane.device for lane in lanes if Step.DRAFT not in lane.steps} == {1}
        else:
            assert option.replicas == 2
            assert option.architecture.devices == (0,)


def test_orders_of_priority_are_the_only_difference_in_its_map() -> None:
    for panel in MAPS["priority"]().panels:
        for cell in panel.cells:
            orders = [option.architecture.replace(priority=()) for option in cell.options]
            assert orders == orders[:1] * 3
            assert [o.side for o in cell.options if not o.architecture.priority] == [FCFS]


def test_a_map_writes_a_table_and_a_figure_of_a_columns_width_per_panel(tmp_path: Path) -> None:
    panel = Panel("p", CELLS, "gain", "one", "other over one", sides={"a": "one", "b": "other"})
    tables = run_map(Map("m", (panel,)), synthetic.profile(), tmp_path, 2, jobs=1)
    saved = pd.read_parquet(tmp_path / "m-p.parquet")
    pd.testing.assert_frame_equal(saved, tables["p"])
    assert saved[["x", "y"]].to_numpy().tolist() == [[1, 0.5], [4, 0.5]]
    assert matplotlib.image.imread(tmp_path / "m-p.png").shape[1] == 660
    assert (tmp_path / "m-p.pdf").read_bytes().startswith(b"%PDF")


def test_panels_with_the_same_cells_share_simulations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(
        "experiments.maps.run.simulated",
        lambda cells, *others: counted.append(len(cells)) or simulated(cells, *others),
    )
    first = Panel("first", CELLS, "gain", "a", "b over a")
    other = Panel("other", CELLS[:1], "gain", "b", "a over b")
    tables = run_map(Map("m", (first, other, first._replace(name="third"))), synthetic.profile(), tmp_path, 2, 1)
    assert counted == [3]
    pd.testing.assert_frame_equal(tables["first"], tables["third"])
    assert tables["other"]["gain"][0] == pytest.approx(1 / tables["first"]["gain"][0])


def test_what_a_second_device_is_sent_is_counted(tmp_path: Path) -> None:
    """Llama-2-7B with TinyLlama: 22 layers of 4 heads of 64 numbers, keys and values in 2 bytes each."""
    profile = synthetic.profile()
    pair = "permutation:llama2-7b+tinyllama-1.1b:alpha=0.8"
    profile = dataclasses.replace(profile, info={**profile.info, "pair": pair})
    lanes = tuple(dataclasses.replace(lane, device=int(Step.DRAFT not in lane.steps)) for lane in PDV.lanes)
    apart = PDV.replace(lanes=lanes, hybrid_at_or_below=0)
    cell = Cell(4, 0, (Option("a", "a", SMALL), Option("b", "b", apart)), 4, 0.5, 16, 12, requests_per_client=2)
    found = run_map(Map("m", (Panel("p", (cell,), "gain", "a", "b over a"),)), profile, tmp_path, 2, jobs=1)["p"]
    per_token = 22 * 2 * 4 * 64 * 2 * 16 / 12 + 8 * 9
    tokens_per_s = found["gain"][0] * found["reference_value"][0]
    assert found["handed_over_mb_per_s"][0] == pytest.approx(tokens_per_s * per_token / 1e6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("speculations", "question = 'speculations': use speculation, third-lane, priority"),
        ("speculation --replicates 1", "replicates = 1"),
        ("speculation --jobs 0", "jobs = 0"),
        ("speculation", "verify draft_length = 0: the profile measured verify at draft_length 4 only"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_one_line(
    arguments: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.profile().save(tmp_path / "profile")
    out = tmp_path / "maps"
    assert main(["map", *arguments.split(), "--profile", str(tmp_path / "profile"), "--out", str(out)]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert says in printed[0]
    assert not out.exists()
