"""A sweep's tables: what is in them, what they are made from, and that nothing is simulated twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from calibrate.profile import Profile
from engines.errors import InputError
from engines.record.metrics import goodput, request_times, summary
from engines.record.run import Run
from experiments.cli import main
from experiments.runner.predict import Prediction, parse_acceptance, predict
from experiments.sweep import workers
from experiments.sweep.config import Sweep
from experiments.sweep.sweep import Outcome, run_sweep
from experiments.sweep.table import difference, summary_table

FILES = ["provenance.toml", "rows.parquet", "summary.parquet", "sweep.toml"]
PROFILE = Path(__file__).parents[3] / "results" / "demo-cpu" / "profile"
SMALL: dict[str, Any] = {
    "profile": str(PROFILE),
    "architectures": ["pd", "pdv"],
    "concurrencies": [2, 6],
    "repeats": 2,
    "seed": 5,
    "acceptance": "0.7",
    "workload": {"requests": 8, "prompt_tokens": "16-40", "output_tokens": "8-24"},
}


def swept(folder: Path, records: bool = False, **changes: Any) -> Outcome:
    return run_sweep(Sweep.from_dict({**SMALL, **changes}), folder, jobs=1, records=records)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("small")
    return swept(folder, records=True, grid={"slo_ttft_s": [0.2, 0.3], "slo_tpot_s": [0.05]}), folder


def test_every_row_has_its_settings_and_the_metrics_of_the_run_that_they_describe(small: Any) -> None:
    outcome, folder = small
    rows = pd.read_parquet(folder / "rows.parquet")
    pd.testing.assert_frame_equal(rows, outcome.rows)
    assert len(rows) == 2 * 2 * 2 * 2
    assert (rows["status"] == "finished").all()
    assert rows["cell"].tolist() == sorted([*range(1, 9)] * 2)
    assert rows["seed"].tolist() == [5, 6] * 8
    settings = Prediction(Profile.load(PROFILE), parse_acceptance("0.7"), extrapolate=True)
    for cell, row in zip(Sweep.from_dict({**SMALL, "repeats": 1}).cells(), rows[::4].itertuples(), strict=True):
        workload = cell.settings.workload().build(cell.settings.load, 5)
        run = predict(cell.architecture, workload, settings.with_seed(5))
        expected = summary(run)
        values = rows.loc[row.Index]
        assert {name: values[name] for name in expected} == pytest.approx(expected, nan_ok=True)
        assert values["goodput_requests_per_s"] == pytest.approx(goodput(run, 0.2, 0.05))
        assert values["utilisation.prefill"] == pytest.approx(expected["lane_busy.prefill"])
        times = request_times(run)
        met = (times["ttft_s"] <= 0.2) & (times["tpot_s"] <= 0.05)
        assert values["slo_attainment"] == pytest.approx(met.mean())
        assert (values["architecture"], values["concurrency"]) == (cell.architecture.name, workload.concurrency)


def test_rows_without_a_record_are_those_of_a_record(tmp_path: Path) -> None:
    """To the last bit, beyond the profile or within, and with requests that are rejected."""
    loads: dict[str, Any] = {
        "closed": {"concurrencies": [20], "grid": {"decode_limit": [6, 14], "requests_per_client": [2]}},
        "open": {"concurrencies": [], "rates": [4.0, 40.0], "slo_ttft_s": 0.2, "max_context": 36},
        "fleet": {"concurrencies": [20], "grid": {"replicas": [3], "router": ["round-robin", "least-loaded"]}},
    }
    for name, load in loads.items():
        with_records = swept(tmp_path / name / "records", records=True, **load).rows
        pd.testing.assert_frame_equal(swept(tmp_path / name / "none", **load).rows, with_records, check_exact=True)
        if name != "fleet":
            assert with_records["beyond_profile" if name == "closed" else "rejected"].max() > 0


def test_replicas_and_routers_can_be_axes(tmp_path: Path) -> None:
    fleets: dict[str, Any] = {"replicas": [1, 2, 4], "router": ["round-robin", "least-loaded"]}
    load: dict[str, Any] = {"concurrencies": [], "rates": [30.0], "workload": {**SMALL["workload"], "requests": 40}}
    outcome = swept(tmp_path, **load, architectures=["pd"], repeats=1, slo_ttft_s=0.02, grid=fleets)
    rows = outcome.rows
    assert rows[["replicas", "router"]].values.tolist() == [[n, name] for n in (1, 2, 4) for name in fleets["router"]]
    assert outcome.simulations == 5  # a router has no choice with one replica
    assert (rows["finished"] == 40).all()
    means = rows.groupby("replicas")["ttft_s.mean"].max()
    assert means[4] < means[2] < means[1]
    attained = rows.groupby("replicas")["slo_attainment"].min()
    assert attained[4] > attained[1]
    busy = rows.groupby("replicas")["utilisation.decode"].mean()
    assert busy[4] < busy[1] < 1


def test_all_cells_of_a_repeat_meet_the_same_load(small: Any) -> None:
    outcome, folder = small
    asked: dict[int, set[str]] = {}
    tapes: dict[int, set[str]] = {}
    for row in outcome.rows.itertuples():
        if (folder / "records" / row.fingerprint).is_dir():
            run = Run.load(folder / "records" / row.fingerprint)
            asked.setdefault(row.seed, set()).add(str(run.requests[["prompt_tokens", "max_tokens"]].values.tolist()))
            tapes.setdefault(row.seed, set()).add(str({id_: tape.tolist() for id_, tape in run.tapes.items()}))
    assert {seed: len(texts) for seed, texts in asked.items()} == {5: 1, 6: 1}
    assert {seed: len(texts) for seed, texts in tapes.items()} == {5: 1, 6: 1}
    assert asked[5] != asked[6]


def test_cells_that_differ_in_their_objective_share_a_simulation(small: Any) -> None:
    outcome, folder = small
    assert outcome.simulations == 8
    assert len(list((folder / "records").iterdir())) == 8
    assert outcome.rows["fingerprint"].is_unique
    by_objective = outcome.rows.groupby("slo_ttft_s")
    assert by_objective["throughput_tokens_per_s"].sum().nunique() == 1
    assert by_objective["slo_attainment"].sum().is_monotonic_increasing


def test_the_summary_has_means_and_students_intervals(small: Any) -> None:
    outcome, folder = small
    table = pd.read_parquet(folder / "summary.parquet")
    values = outcome.rows.loc[outcome.rows["cell"] == 3, "ttft_s.mean"]
    row = table.set_index("cell").loc[3]
    assert row["ttft_s.mean"] == pytest.approx(values.mean())
    bounds = stats.t.interval(0.95, 1, loc=values.mean(), scale=stats.sem(values))
    assert (row["ttft_s.mean.low"], row["ttft_s.mean.high"]) == pytest.approx(bounds)
    assert (row["finished_repeats"], row["failed_repeats"], row["decode_limit"]) == (2, 0, 6)
    mean, low, high = difference(outcome.rows, "ttft_s.mean", 3, 1)
    pairs = values.to_numpy() - outcome.rows.loc[outcome.rows["cell"] == 1, "ttft_s.mean"].to_numpy()
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 1, loc=pairs.mean(), scale=stats.sem(pairs)))
    assert mean == pytest.approx(pairs.mean())


def test_the_summary_does_not_depend_on_how_the_rows_lie_in_memory(small: Any) -> None:
    rows, exactly = small[0].rows, summary_table(small[0].rows)
    for other in (rows.copy(), pd.DataFrame({name: rows[name] for name in rows})):
        pd.testing.assert_frame_equal(summary_table(other), exactly, check_exact=True)


def test_one_repeat_has_no_interval(tmp_path: Path) -> None:
    summary_ = swept(tmp_path / "out", repeats=1, concurrencies=[2]).summary
    assert summary_["ttft_s.mean"].notna().all()
    assert summary_["ttft_s.mean.high"].isna().all()


def test_only_what_has_no_result_is_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []

    def counted(simulation: Any, settings: Any) -> Any:
        done.append((simulation.architecture.name, simulation.seed))
        return workers_rows_of(simulation, settings)

    workers_rows_of = workers.rows_of
    monkeypatch.setattr(workers, "rows_of", counted)
    first = swept(tmp_path / "out", concurrencies=[2])
    assert sorted(done) == [("pd", 5), ("pd", 6), ("pdv", 5), ("pdv", 6)]
    written = (tmp_path / "out" / "rows.parquet").read_bytes()
    assert swept(tmp_path / "out", concurrencies=[2]).simulations == 0
    assert (tmp_path / "out" / "rows.parquet").read_bytes() == written
    done.clear()
    more = swept(tmp_path / "out", concurrencies=[2], repeats=3)
    assert sorted(done) == [("pd", 7), ("pdv", 7)]
    kept = more.rows[more.rows["repeat"] < 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first.rows)
    done.clear()
    swept(tmp_path / "out", concurrencies=[2], repeats=3, workload={**SMALL["workload"], "requests": 9})
    assert len(done) == 6


def test_a_stopped_sweep_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = swept(tmp_path / "whole")
    simulate, left = workers.rows_of, iter(range(3))

    def stopping(simulation: Any, settings: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return simulate(simulation, settings)

    monkeypatch.setattr(workers, "rows_of", stopping)
    monkeypatch.setattr(workers, "BATCH_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "out")
    assert not (tmp_path / "out" / "rows.parquet").exists()
    kept = pd.concat(pd.read_parquet(path) for path in (tmp_path / "out" / "chunks").iterdir())
    assert len(kept) == 3
    monkeypatch.setattr(workers, "rows_of", simulate)
    assert swept(tmp_path / "out").simulations == whole.simulations - 3
    for name in ("rows.parquet", "summary.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.parametrize("written_until", ["summary.parquet", "rows.parquet"])
def test_a_sweep_killed_while_it_wrote_its_tables_is_finished(tmp_path: Path, written_until: str) -> None:
    out, chunks = tmp_path / "out", tmp_path / "out" / "chunks"
    swept(out, concurrencies=[2])
    whole = {name: (out / name).read_bytes() for name in ("rows.parquet", "summary.parquet")}
    chunks.mkdir()
    pd.read_parquet(out / "rows.parquet").to_parquet(chunks / "000001.parquet")
    (out / "summary.parquet").unlink()
    (out / written_until).unlink(missing_ok=True)
    for half in (out / ".pdv-0123456789abcdef.parquet", chunks / ".pdv-0123456789abcdef.parquet"):
        half.write_bytes(b"PAR1")
    assert swept(out, concurrencies=[2]).simulations == 0
    assert {name: (out / name).read_bytes() for name in whole} == whole
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_what_lies_beyond_the_profile_is_counted_or_refused(tmp_path: Path) -> None:
    wide: dict[str, Any] = {
        "architectures": ["pd"],
        "concurrencies": [40],
        "grid": {"decode_limit": [12, 40]},
        "workload": {**SMALL["workload"], "requests": 48},
    }
    rows = swept(tmp_path / "out", **wide, repeats=1).rows
    assert (rows["beyond_profile"] > 0).tolist() == [False, True]
    assert rows["beyond_profile_share"].between(0, 0.9).all()
    strict = swept(tmp_path / "out", **wide, repeats=1, extrapolate=False)
    assert strict.rows["status"].tolist() == ["finished", "failed"]
    assert "the profile measured draft at batch_size 1 to 12" in strict.rows["error"][1]


def test_a_failed_cell_is_a_row_with_its_error_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.toml").write_text(
        f'profile = "{PROFILE}"\narchitectures = ["pd"]\nconcurrencies = [1, 2]\nrepeats = 2\nacceptance = "0.5"\n'
        '[workload]\nrequests = 3\noutput_tokens = "4"\n[grid]\nprompt_tokens = [8, 100000]\n'
    )
    out = tmp_path / "out"
    assert main(["sweep", str(tmp_path / "sweep.toml"), "--out", str(out), "--jobs", "1"]) == 1
    said = capsys.readouterr()
    assert said.err == (
        "pdv: failed: 2 cells, first cell 2: requests = 3: none finished; the first error: prompt_tokens = "
        "100000: the context limit of 2043 leaves no room for output; shorten the prompt\n"
    )
    rows = pd.read_parquet(out / "rows.parquet")
    assert rows["status"].tolist() == ["finished", "finished", "failed", "failed"] * 2
    assert rows.loc[rows["status"] == "failed", "throughput_tokens_per_s"].isna().all()
    summary_ = pd.read_parquet(out / "summary.parquet")
    assert summary_["failed_repeats"].tolist() == [0, 2, 0, 2]

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("experiments.sweep.simulation.predict_totals", broken)
    outcome = swept(tmp_path / "broken")
    assert set(outcome.rows["error"]) == {"ZeroDivisionError: a bug"}
    assert np.isnan(outcome.summary.get("throughput_tokens_per_s", pd.Series([np.nan]))).all()


def test_other_files_and_other_pairs_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"rows\.parquet exists and was not written by pdv"):
        swept(tmp_path)
    assert (tmp_path / "rows.parquet").read_text() == "mine"
    with pytest.raises(InputError, match="the profile is of"):
        swept(tmp_path / "out", pair="permutation:llama2-7b+tinyllama-1.1b:alpha=0.8")
    with pytest.raises(InputError, match="records are written on this machine"):
        run_sweep(Sweep.from_dict(SMALL), tmp_path / "out", backend="ray", records=True)
