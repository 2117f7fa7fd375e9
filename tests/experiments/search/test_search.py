"""A search finds the best of a small space, says why the others are not, and goes on where it was stopped."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w

from engines.errors import InputError
from experiments.cli import main
from experiments.search.config import CONFIGS, OTHER_SEEDS, Search
from experiments.search.proposals import Proposals
from experiments.search.report import notes
from experiments.search.search import run_search
from experiments.sweep import workers
from experiments.sweep.config import Sweep
from experiments.sweep.sweep import run_sweep
from experiments.sweep.table import FAILED

PROFILE = Path(__file__).parents[3] / "results" / "demo-cpu" / "profile"
CLOSED: dict[str, Any] = {
    "profile": str(PROFILE),
    "architectures": ["pd", "pdv"],
    "concurrency": 6,
    "acceptance": "0.7",
    "trials": 16,
    "repeats": 2,
    "finalists": 3,
    "final_repeats": 4,
    "seed": 3,
    "workload": {"requests": 12, "prompt_tokens": "16-40", "output_tokens": "8-24"},
    "space": {"decode_limit": {"uniform": [1, 6]}, "slots": {"choice": [3, 64]}},
}
TPOT_S = 0.0075
SLO = {"slo_ttft_s": 0.5, "slo_tpot_s": 0.03}
OPEN = {name: value for name, value in CLOSED.items() if name != "concurrency"} | SLO | {
    "rates": [2.0, 60.0], "rate_steps": 3, "slo_share": 0.9,
    "trials": 9, "finalists": 2, "final_repeats": 2,
}  # fmt: skip


def searched(folder: Path, **values: Any) -> Any:
    pytest.importorskip("optuna")
    return run_search(Search.from_dict(values), folder, jobs=1)


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIGS.glob("*.toml"))])
def test_the_shipped_configurations_are_good(name: str) -> None:
    search = Search.load(name)
    assert search.name == name
    assert Path(search.profile).is_dir()
    assert Search.from_dict(tomllib.loads(tomli_w.dumps(search.resolved()))) == search


def test_the_chosen_candidate_is_as_good_as_the_best_of_a_full_grid(tmp_path: Path) -> None:
    found = searched(tmp_path / "search", **CLOSED)
    grid = {"decode_limit": [1, 2, 3, 4, 5, 6], "slots": [3, 64], "concurrency": [6]}
    shared = {name: CLOSED[name] for name in ("profile", "architectures", "acceptance", "workload")}
    seeds = {"seed": 3 + OTHER_SEEDS, "repeats": 4}
    whole = run_sweep(Sweep.from_dict({**shared, **seeds, "grid": grid}), tmp_path / "sweep", jobs=1).summary
    best = found.candidates.iloc[0]
    assert best["status"] == "chosen"
    assert best["final_objective"] >= 0.97 * whole["throughput_tokens_per_s"].max()
    same = whole[(whole["architecture"] == best["architecture"]) & (whole["decode_limit"] == best["decode_limit"])]
    same = same[same["slots"] == best["slots"]]
    assert best["final_objective"] == pytest.approx(same["throughput_tokens_per_s"].item())  # on the same other seeds


def test_the_last_candidates_are_neighbours_of_the_best() -> None:
    """Made up: a limit of 4 and k 6 are best, a limit of 6 fails, and k below 4 misses the SLO."""
    pytest.importorskip("optuna")
    space = {
        "decode_limit": {"uniform": [1, 6]},
        "k": {"choice": [2, 3, 4, 6, 8]},
        "acceptance": {"choice": ["0.7", "0.5"]},
    }
    search = Search.from_dict({**CLOSED, **SLO, "trials": 48, "space": space})
    propose, told = Proposals(search), []
    for _ in range(6):
        trials, chosen = propose.ask(8)
        judged = []
        for candidate in chosen:
            good = -abs(candidate["decode_limit"] - 4) - abs(candidate["k"] - 6) - (candidate["acceptance"] == "0.5")
            status = FAILED if candidate["decode_limit"] == 6 else "finished"
            share = 1.0 if candidate["k"] >= 4 else 0.5
            judged.append({**candidate, "objective": float(good), "status": status, "slo_attainment": share})
        propose.tell(trials, judged)
        told += judged
    sound = [row for row in told if row["status"] != FAILED and row["slo_attainment"] == 1.0]
    best = max(sound, key=lambda row: row["objective"])
    assert (best["decode_limit"], best["k"], best["acceptance"]) == (4, 6, "0.7")
    tried = [{name: row[name] for name in ("architecture", *space)} for row in told]
    near = [{**tried[told.index(best)], name: value} for name, values in NEAREST.items() for value in values]
    assert all(candidate in tried for candidate in near)
    assert len([candidate for candidate in near if candidate not in tried[:32]]) > 0


NEAREST = {"decode_limit": [3, 5], "k": [4, 8], "acceptance": ["0.5"]}


def test_every_candidate_has_a_status_and_a_reason(tmp_path: Path) -> None:
    space = {**CLOSED["space"], "prefill_limit": {"choice": [1, 4]}}  # the profile measured single prompts only
    values = {**CLOSED, "space": space, "slo_tpot_s": TPOT_S, "slo_share": 0.8}
    table = searched(tmp_path / "out", **values).candidates
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "candidates.parquet"), table)
    assert table["status"].tolist().count("chosen") == 1
    rejected = table[table["status"] == "rejected"]
    assert (rejected["reason"] != "").all()
    missed = rejected["slo_attainment"] < 0.8
    assert missed.any()
    assert rejected.loc[missed, "reason"].str.contains("of requests meet the SLO; 80.0% are asked for").all()
    assert not table.loc[table["slo_attainment"] < 0.8, "front"].any()
    assert 0 < table["probability_best"].sum() <= 1  # in some samples none meets the SLO
    assert table["final_objective"].notna().sum() <= 3
    failed = table[table["status"] == "failed"]
    assert failed["reason"].str.contains("the profile measured prefill_draft at batch_size 1 only").all()
    assert len(failed) > 0
    front = table[table["front"]].sort_values("objective")
    assert front["tpot_s.p95"].is_monotonic_increasing


def test_the_capacity_meets_the_objective_and_the_next_rate_does_not(tmp_path: Path) -> None:
    found = searched(tmp_path / "out", **OPEN)
    grid = Search.from_dict(OPEN).rate_grid()
    best = found.candidates.iloc[0]
    assert best["final_objective"] in grid
    rows = found.rows[(found.rows["seed"] >= OTHER_SEEDS) & (found.rows["architecture"] == best["architecture"])]
    for name in ("decode_limit", "slots"):
        rows = rows[rows[name] == best[name]]
    met = rows.groupby("rate")["slo_attainment"].mean() >= 0.9
    assert met[met.index <= best["final_objective"]].all()
    above = [rate for rate in met.index if rate > best["final_objective"]]
    assert not above or not met[above[0]]


def test_a_stopped_search_ends_in_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = searched(tmp_path / "whole", **OPEN)
    simulate, left = workers.rows_of, iter(range(20))

    def stopping(simulation: Any, settings: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return simulate(simulation, settings)

    monkeypatch.setattr(workers, "rows_of", stopping)
    monkeypatch.setattr(workers, "BATCH_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "out", **OPEN)
    monkeypatch.setattr(workers, "rows_of", simulate)
    assert searched(tmp_path / "out", **OPEN).simulations == whole.simulations - 20
    for name in ("rows.parquet", "candidates.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_that_is_too_short_to_show_an_overload_is_noted() -> None:
    search = Search.from_dict({**OPEN, "workload": {"requests": 300}})
    candidates = pd.DataFrame({"status": ["chosen", "rejected"], "final_objective": [60.0, 50.0]})
    (said,) = notes(search, candidates)
    assert said == (
        "300 requests arrive within 5.0 s: an overload of up to 10% still meets the TTFT objective; give 600 requests"
    )
    assert notes(Search.from_dict({**OPEN, "workload": {"requests": 600}}), candidates) == []
    assert notes(search, candidates[1:]) == []
    assert notes(Search.from_dict(CLOSED), candidates) == []


def test_an_objective_that_nothing_meets_ends_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    values = {**CLOSED, "slo_tpot_s": 1e-6, "trials": 4}
    (tmp_path / "search.toml").write_text(tomli_w.dumps(values))
    assert main(["search", str(tmp_path / "search.toml"), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 1
    assert capsys.readouterr().err == "pdv: no candidate meets the SLO\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": [1.0, 2.0]}, "loads = None: give one of concurrency and rates"),
        ({"concurrency": None, "rates": [2.0, 1.0], **SLO}, "rates = [2.0, 1.0]: give the lowest and the highest"),
        ({"concurrency": None, "rates": [1.0, 2.0]}, "slo_ttft_s, slo_tpot_s = None: the highest rate needs an SLO"),
        ({"space": {"rate": {"uniform": [1, 2]}}}, "space = 'rate': it cannot be searched; use k, batch_limit"),
        ({"space": {"k": {"choice": ["none"]}}}, "draft_length = 'none'"),
        ({"space": {"k": {"choice": []}}}, "space.k.choice = []"),
        ({"architectures": ["pd", "pd"]}, "architectures = 'pd': two of them have this name"),
        ({"workload": {"trace": "t.csv"}}, "workload.trace = 't.csv'"),
        ({"seed": 2**63 - 1}, "seed = 9223372036854775807: use 9223372036852775807 or fewer"),
        ({"final_repeats": 1}, "final_repeats = 1"),
        ({"grid": {}}, "grid = {}: no such setting"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, Any], message: str) -> None:
    values = {name: value for name, value in {**CLOSED, **changes}.items() if value is not None}
    with pytest.raises(InputError) as caught:
        Search.from_dict(values)
    assert message in str(caught.value)


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="a search needs Optuna; install the extra: pip install 'pdv\\[search\\]'"):
        run_search(Search.from_dict(CLOSED), tmp_path / "out")
