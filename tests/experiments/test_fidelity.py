"""Errors over all cells, tolerances that wrong models fail, and decisions between layouts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from engines.policy.architecture import ARCHITECTURES
from engines.record.run import Run
from experiments.cli import main
from experiments.compare.decisions import decisions
from experiments.compare.fidelity import FIDELITY, VERDICT_COLUMNS, fidelity
from experiments.compare.fidelity_report import verdicts_report
from experiments.runner.cells import cell_of
from experiments.runner.predict import FROM_PROFILE, Prediction, planned, predict
from experiments.runner.predictions import predictions
from tests.experiments import synthetic
from tests.experiments.synthetic import as_live, stretched
from tests.experiments.test_explain import profile

Work = tuple[list[Run], Path]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Live runs that the profile predicts exactly, and the folder that has both."""
    folder, known = tmp_path_factory.mktemp("fidelity"), profile(host_ms=1.0)
    settings = Prediction(known, FROM_PROFILE, seed=1)
    lives = []
    for name in ("pd", "pdv"):
        asked = synthetic.workload(count=40, concurrency=5)
        lives.append(as_live(predict(ARCHITECTURES[name], asked, settings), name=name))
        lives[-1].save(folder / "live" / name)
    known.save(folder / "profile")
    return lives, folder


def test_a_right_model_meets_the_tolerances(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = work
    command = f"compare {folder}/live --predict --profile {folder}/profile --tolerances fidelity"
    assert main(command.split()) == 0
    assert "14 of 14 tolerances are met" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["contention", "host", "padding"])
def test_a_model_without_a_part_fails_the_tolerances(
    part: str, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = work
    command = f"compare {folder}/live --predict --profile {folder}/profile --tolerances fidelity --without {part}"
    assert main(command.split()) == 1
    assert "NOT MET" in capsys.readouterr().out


def test_errors_are_explained_and_written(work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = work
    command = f"compare {folder}/live --predict --profile {folder}/profile --without host --explain"
    assert main([*command.split(), "--out", f"{tmp_path}/found.csv"]) == 0
    assert "host" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "found_explained.csv")
    causes = table.groupby(["run", "cause"])["share"].sum().unstack()
    assert (causes["host time"] < -0.05).all()
    assert (causes.drop(columns="host time").abs() < 0.1 * causes["host time"].abs().min() + 0.02).all(axis=None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--without host", "add --predict"),
        ("--predict", "predictions need one"),
        ("--predict --profile {0}/profile --without luck", "use contention, contention-differences"),
        ("--predict --profile {0}/profile --tolerances strict", "use fidelity"),
        ("{0}/live --predict --profile {0}/profile", "not both"),
        ("--predict --profile {0}/profile --only pd", "it selects cells of an experiment"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    options: str, reason: str, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = work
    assert main(f"compare {folder}/live {options}".format(folder).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_a_part_can_be_switched_off_in_a_simulation(work: Work, tmp_path: Path) -> None:
    _, folder = work
    command = f"simulate -p {folder}/profile -a pd --replay {folder}/live/pd --without host --without padding"
    assert main([*command.split(), "--out", f"{tmp_path}/run"]) == 0
    assert Run.load(tmp_path / "run").info["costs"]["without"] == ["host", "padding"]


def test_a_part_can_be_switched_off_in_an_experiment(work: Work, tmp_path: Path) -> None:
    _, folder = work
    config = tmp_path / "config.toml"
    text = 'mode = "simulated"\narchitectures = ["pd"]\nconcurrencies = [3]\n[workload]\nprompt_tokens = "20"\n'
    config.write_text(f'profile = "{folder}/profile"\n{text}', encoding="utf-8")
    tokens = []
    for more in ("", "--without host"):  # into the same folder: the second replaces the first
        assert main(f"experiment {config} --out {tmp_path}/out --jobs 1 {more}".split()) == 0
        tokens.append(pd.read_csv(tmp_path / "out" / "cells.csv")["throughput_tokens_per_s"].item())
    assert tokens[1] > 1.05 * tokens[0]


def test_what_is_planned_keeps_the_alpha_of_the_load() -> None:
    live = as_live(synthetic.simulated("pd"))
    assert "alpha" not in planned(live).info
    live.info["workload"] = {**live.info["workload"], "alpha": 0.0}
    assert planned(live).info["alpha"] == 0.0


def test_blind_simulations_know_the_description_and_not_the_record() -> None:
    live = synthetic.live("pdv", rate=20.0, count=30)
    late = dataclasses.replace(live, requests=live.requests.assign(arrival_s=live.requests["arrival_s"] + 1))
    asked = synthetic.workload(count=30, rate=20.0)
    assert planned(late).requests == asked.requests
    made = predictions([live], synthetic.profile())
    assert [run.info.get("blind", False) for run in made] == [False, True]
    assert made[0].info["acceptance"]["source"] == "tapes"
    assert made[1].info["acceptance"]["source"] == "per-request spread"


def test_a_profile_serves_other_alphas_if_the_acceptance_is_given(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lives, _ = work
    name = "permutation:llama2-7b+tinyllama-1.1b:alpha={}:layers=2"
    known = profile(host_ms=1.0)
    dataclasses.replace(known, info={**known.info, "pair": name.format(0.8)}).save(tmp_path / "profile")
    live = dataclasses.replace(lives[0], info={**lives[0].info, "pair": name.format("0.3,0.9")})
    live.save(tmp_path / "live" / "pd")
    command = f"compare {tmp_path}/live --predict --profile {tmp_path}/profile".split()
    assert main(command) == 2
    assert "acceptance = 'profile'" in capsys.readouterr().err
    assert main([*command, "--acceptance", "0.6+-0.2"]) == 0
    capsys.readouterr()
    dataclasses.replace(live, info={**live.info, "pair": name.format(0.8) + ":seed=1"}).save(tmp_path / "seed" / "pd")
    command[1] = f"{tmp_path}/seed"
    assert main([*command, "--acceptance", "0.8"]) == 2
    assert "pair" in capsys.readouterr().err


def test_totals_are_means_of_absolute_errors_and_the_worst_cell() -> None:
    runs = [synthetic.simulated("pd", concurrency=n) for n in (1, 3)]
    lives = [as_live(run, name=f"live{cell_of(run).level}") for run in runs]
    simulations = [stretched(run, factor, f"s{factor}") for run, factor in zip(runs, (1.1, 0.8), strict=True)]
    found = fidelity(lives, simulations)
    totals = found.totals().set_index("metric").loc["P99"]
    assert totals["mean"] == pytest.approx(0.15)
    assert totals["worst"] == pytest.approx(0.2)
    assert totals["worst_cell"] == "pd, concurrency 3, k 4"
    verdicts = found.verdicts({"replay": {"P99": FIDELITY["replay"]["P99"]}})
    assert verdicts["met"].tolist() == [False]


def test_a_mean_within_its_tolerance_does_not_excuse_the_worst_cell() -> None:
    runs = [synthetic.simulated("pd", concurrency=n) for n in (1, 2, 3, 4, 5)]
    lives = [as_live(run, name=f"live{cell_of(run).level}") for run in runs]
    simulations = [stretched(run, 1.1 if i == 0 else 1.0, f"s{i}") for i, run in enumerate(runs)]
    verdicts = fidelity(lives, simulations).verdicts({"replay": FIDELITY["replay"]}).set_index("metric")
    assert verdicts.loc["latency", "mean"] == pytest.approx(0.02)
    assert verdicts.loc["latency", "worst"] == pytest.approx(0.1)
    assert not verdicts.loc["latency", "met"]


def test_a_wrong_winner_costs_the_difference() -> None:
    runs = {name: synthetic.simulated(name) for name in ("pd", "pdv")}
    lives = [as_live(runs["pd"], 0.5, "fast"), as_live(runs["pdv"], 1.0, "slow")]
    right = decisions(lives, list(runs.values()))
    (wrong,) = decisions(lives, [stretched(runs["pd"], 2.0, "s1"), stretched(runs["pdv"], 0.5, "s2")])
    assert wrong.winner.architecture == "pd"
    assert wrong.named["simulated"].architecture == "pdv"
    tokens = [run.requests["output_tokens"].sum() / run.duration_s for run in lives]
    assert wrong.regret["simulated"] == pytest.approx(tokens[0] - tokens[1])
    assert right[0].regret["simulated"] in (0.0, wrong.regret["simulated"])


def test_layouts_within_the_live_spread_are_no_decision() -> None:
    pd_run, pdv = synthetic.simulated("pd"), synthetic.simulated("pdv")
    equal = pd_run.duration_s / pdv.duration_s
    assert decisions([as_live(pd_run, name="a"), as_live(pdv, equal * 1.01, "b")], [pd_run, pdv]) == []
    repeats = [as_live(pd_run, factor, f"a{factor}") for factor in (0.7, 1.3)]
    assert decisions([*repeats, as_live(pdv, equal * 1.2, "b")], [pd_run, pdv]) == []
    assert len(decisions([as_live(pd_run, name="a"), as_live(pdv, equal * 1.2, "b")], [pd_run, pdv])) == 1


def test_layouts_under_other_loads_are_no_decision() -> None:
    lives = [as_live(synthetic.simulated("pd", concurrency=1)), as_live(synthetic.simulated("pdv", concurrency=3))]
    assert decisions(lives, []) == []


@pytest.mark.parametrize(("setting", "values"), [("alpha", (0.5, 0.8)), ("rate_steps", ([1.0, 3.0], [1.0, 2.0]))])
def test_loads_of_other_requests_are_no_decision(setting: str, values: tuple[object, object]) -> None:
    lives = [as_live(synthetic.simulated("pd"), name="a"), as_live(synthetic.simulated("pdv"), 2.0, "b")]
    assert len(decisions(lives, [])) == 1
    for live, value in zip(lives, values, strict=True):
        live.info["workload"] = {**live.info["workload"], setting: value}
    assert decisions(lives, []) == []


def test_a_number_that_misses_its_limit_never_looks_like_it() -> None:
    row = ("replay", "throughput", 0.01549, 0.015, 0.04, 0.04, "pd, concurrency 5, k 4", False)
    other = ("replay", "r", 0.97996, 0.98, 0.9, float("inf"), "pd, concurrency 5, k 4", False)
    console = Console(width=140, force_terminal=False)
    with console.capture() as capture:
        console.print(verdicts_report(pd.DataFrame([row, other], columns=VERDICT_COLUMNS)))
    lines = [line.split() for line in capture.get().splitlines() if "NOT MET" in line]
    assert [line[2:7] for line in lines] == [
        ["1.55%", "1.5%", "4.0%", "4.0%", "NOT"],
        ["0.97996", "least", "0.980", "0.900", "NOT"],
    ]
