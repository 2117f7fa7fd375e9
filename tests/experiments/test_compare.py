"""Comparison against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from engines.errors import InputError
from engines.record.metrics import PARTS, decompose
from engines.record.run import Run
from experiments.compare.compare import THROUGHPUT, compare, pair_by_request, spread
from experiments.compare.identity import identity
from experiments.compare.report import comparison_report, grid_table, results_console, verdict, write_report
from experiments.compare.solo_times import with_solo_times
from experiments.runner.cells import Cell, cell_of
from sim.costs import CostModel
from tests.experiments import synthetic
from tests.experiments.synthetic import as_live, stretched


@pytest.fixture(scope="module")
def run() -> Run:
    return synthetic.simulated("pdv")


def metric(table: pd.DataFrame, name: str) -> pd.Series:
    return table.set_index("metric").loc[name]


def test_error_is_signed_and_relative_to_the_mean_of_the_live_repeats(run: Run) -> None:
    lives = [as_live(run, factor, f"live{factor}") for factor in (0.8, 1.0, 1.2)]
    comparison = compare(lives, [stretched(run, 0.9, "simulated")])
    latency = metric(comparison.metrics, "latency_s.mean")
    assert latency["error"] == pytest.approx(-0.1)
    assert latency["live_spread"] == pytest.approx(0.4)  # (1.2 - 0.8) / 1.0
    assert latency["live_repeats"] == 3
    assert latency["difference"] == pytest.approx(latency["simulated"] - latency["live"])
    # Throughput goes as 1 / time: live (1/0.8 + 1 + 1/1.2) / 3 = 1.02778, simulated 1/0.9 = 1.11111.
    expected = 1.1111111 / 1.0277778 - 1
    assert metric(comparison.metrics, THROUGHPUT)["error"] == pytest.approx(expected)
    assert comparison.throughput_error == pytest.approx(expected)


def test_quantiles_are_interpolated_linearly(run: Run) -> None:
    latency = (run.requests["finish_s"] - run.requests["arrival_s"]).sort_values().to_numpy()
    place = 0.95 * (len(latency) - 1)
    low = int(place)
    expected = latency[low] + (place - low) * (latency[low + 1] - latency[low])
    rows = compare([as_live(run)], [stretched(run, 2.0, "slow")]).metrics
    assert metric(rows, "latency_s.p95")["live"] == pytest.approx(expected)
    assert metric(rows, "latency_s.p95")["error"] == pytest.approx(1.0)


def test_every_promised_quantity_is_compared(run: Run) -> None:
    names = set(compare([as_live(run)], [run]).metrics["metric"])
    quantities = [
        f"{q}.{s}" for q in ("ttft_s", "tpot_s", "latency_s") for s in ("mean", "median", "p90", "p95", "p99")
    ]
    assert names >= {*quantities, THROUGHPUT, "batch_size.verify", "lane_busy.draft", "running_at_least_1"}
    assert names >= {f"part.{part}_s" for part in PARTS}


def test_a_run_compared_with_itself_has_no_error(run: Run) -> None:
    table = compare([as_live(run)], [run]).metrics
    assert (table["difference"].dropna() == 0).all()
    assert (table["error"].dropna() == 0).all()
    assert table[["live_spread", "simulated_spread"]].isna().all(axis=None)  # one repeat says nothing of the spread


def test_spread_needs_two_repeats_and_ignores_scale() -> None:
    values = pd.DataFrame({"a": [9.0, 10.0, 11.0], "b": [0.0, 0.0, 0.0], "c": [900.0, 1000.0, 1100.0]})
    assert spread(values).to_dict() == pytest.approx({"a": 0.2, "b": 0.0, "c": 0.2})
    assert spread(values.head(1)).isna().all()


def test_pairs_by_request(run: Run) -> None:
    slower = stretched(run, 1.25, "simulated")
    rows = {row["quantity"]: row for row in pair_by_request(run, slower)}
    assert rows["latency_s"]["mape"] == pytest.approx(0.25)
    assert rows["latency_s"]["bias"] == pytest.approx(0.25)
    assert rows["latency_s"]["pearson_r"] == pytest.approx(1.0)
    assert rows["ttft_s"]["requests"] == len(run.requests)


def test_bias_cancels_where_the_mean_absolute_error_does_not(run: Run) -> None:
    live = run.requests.assign(arrival_s=0.0, finish_s=1.0, first_token_s=0.5)
    wrong = live.assign(finish_s=np.where(np.arange(len(live)) % 2, 1.5, 0.5))
    assert len(live) % 2 == 0
    rows = pair_by_request(dataclasses.replace(run, requests=live), dataclasses.replace(run, requests=wrong))
    latency = rows[0]
    assert latency["bias"] == pytest.approx(0.0)
    assert latency["mape"] == pytest.approx(0.5)
    assert math.isnan(latency["pearson_r"])  # live does not vary


def test_replays_are_paired_and_kept_out_of_the_grid(run: Run) -> None:
    live = as_live(run)
    replay = stretched(run, 3.0, "replay", replays="live", replays_id=identity(live))
    comparison = compare([live], [stretched(run, 1.1, "closed loop"), replay])
    assert metric(comparison.metrics, "latency_s.mean")["error"] == pytest.approx(0.1)
    assert comparison.paired["mape"].to_list() == pytest.approx([2.0, 2.0, 2.0])
    only_replayed = compare([live], [replay])
    assert metric(only_replayed.metrics, "latency_s.mean")["error"] == pytest.approx(2.0)


def test_a_tolerance_names_the_cells_that_exceed_it(run: Run) -> None:
    comparison = compare([as_live(run)], [stretched(run, 1 / 1.3, "fast")])
    assert comparison.throughput_error == pytest.approx(0.3)
    assert comparison.exceeding(0.31) == []
    assert comparison.exceeding(0.29) == ["pdv, concurrency 3, k 4: +30.0%"]


def test_cells_are_told_apart_by_architecture_load_and_draft_length(run: Run) -> None:
    assert cell_of(run) == Cell("pdv", "4", "concurrency", 3.0)
    assert cell_of(synthetic.simulated("pd", rate=5.0)) == Cell("pd", "4", "rate", 5.0)
    other = synthetic.live("pdv", concurrency=5)
    comparison = compare([as_live(run), other], [run])
    assert comparison.unmatched == ["pdv, concurrency 5, k 4 (live only)"]
    with pytest.raises(InputError, match="the two sides have no cell in common"):
        compare([other], [run])


def test_solo_times_make_live_contention_show_and_leave_the_latency_alone() -> None:
    live = synthetic.live("pdv", slower=1.0)
    filled = with_solo_times(live, CostModel(synthetic.profile()))
    assert filled.spans["solo_s"].notna().all()
    before, after = decompose(live), decompose(filled)
    assert (before["contention"] == 0).all()
    assert after["contention"].mean() > 0
    assert after[PARTS].sum(axis=1).to_numpy() == pytest.approx(after["latency_s"].to_numpy())
    known = synthetic.simulated("pdv")
    assert with_solo_times(known, CostModel(synthetic.profile())) is known


def test_contention_of_a_device_that_became_faster_is_negative() -> None:
    alone = synthetic.live("pdv", slower=0.5, concurrency=1)
    filled = with_solo_times(alone, CostModel(synthetic.profile()))
    assert decompose(filled)["contention"].mean() < 0


def test_report_and_csv_hold_the_same_numbers(run: Run, tmp_path) -> None:  # type: ignore[no-untyped-def]
    live = as_live(run)
    comparison = compare([live], [stretched(run, 1 / 1.25, "fast", replays="live", replays_id=identity(live))])
    paths = comparison.save(tmp_path / "deep" / "comparison.csv")
    assert [path.name for path in paths] == ["comparison.csv", "comparison_paired.csv"]
    table = pd.read_csv(paths[0])
    assert metric(table, THROUGHPUT)["error"] == pytest.approx(0.25)
    text = write_report(comparison, tmp_path / "comparison.txt").read_text()
    assert "+25.0%" in text
    assert verdict(comparison) in " ".join(text.split())  # long lines are wrapped
    assert comparison_report(comparison) is not None


def test_both_sides_have_repeats_with_seeds_of_their_own() -> None:
    seeds = (1, 2)
    asked = [synthetic.workload(seed=seed) for seed in seeds]
    runs = [synthetic.simulated(asked=work, seed=seed) for work, seed in zip(asked, seeds, strict=True)]
    comparison = compare([as_live(run, 1.0, f"r{i}") for i, run in enumerate(runs)], runs)
    latency = metric(comparison.metrics, "latency_s.mean")
    assert latency["simulated_repeats"] == 2
    assert latency["simulated_spread"] == pytest.approx(latency["live_spread"])
    assert latency["simulated_spread"] > 0
    assert set(comparison.metrics["differs"]) == {""}


def test_the_simulated_spread_is_that_of_the_simulations(run: Run) -> None:
    comparison = compare([as_live(run)], [stretched(run, factor, "simulated") for factor in (0.8, 1.2)])
    latency = metric(comparison.metrics, "latency_s.mean")
    assert latency["simulated_spread"] == pytest.approx(0.4)
    assert latency["error"] == pytest.approx(0.0)


def test_the_verdict_gives_all_five_errors(run: Run) -> None:
    text = verdict(compare([as_live(run)], [stretched(run, 1 / 1.25, "fast")]))
    for part in ("throughput 25.0%", "mean TTFT 20.0%", "mean TPOT 20.0%", "mean latency 20.0%", "P95 latency 20.0%"):
        assert part in text


def test_the_table_of_cells_has_means_spreads_and_exact_outputs(run: Run, capsys) -> None:  # type: ignore[no-untyped-def]
    exact = {"checked": 12, "equal": 11}
    lives = [as_live(run, factor, f"r{factor}", exactness=exact) for factor in (0.8, 1.2)]
    results_console().print(grid_table(lives))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110
    (row,) = [line for line in text.splitlines() if line.strip().startswith("pdv")]
    assert row.count("(40%)") == 7  # every number, on one line
    assert row.split()[-1] == "22/24"


def test_the_grid_has_the_cells_that_exist_and_no_other_combination() -> None:
    loads = {"pd": (1, 4), "pdv": (4,)}
    simulated = [synthetic.simulated(name, concurrency=n) for name, counts in loads.items() for n in counts]
    grid = compare([as_live(run, 1.0, f"{i}") for i, run in enumerate(simulated)], simulated).grid()
    assert grid[["architecture", "level"]].to_numpy().tolist() == [["pd", 1.0], ["pd", 4.0], ["pdv", 4.0]]
    assert grid["throughput_live"].notna().all()
    assert (grid["differs"] == "").all()
