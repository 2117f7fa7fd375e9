"""The simulations of an experiment: what decides them, what they need, and what they predict."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import PD
from engines.record.metrics import acceptance
from engines.workload.workload import FixedLength, make_workload
from experiments.runner import predict as predicting
from experiments.runner.cells import fingerprint, load_runs
from experiments.runner.config import Experiment
from experiments.runner.experiment import Runner
from experiments.runner.predict import AcceptanceChoice, Prediction
from tests.experiments import synthetic
from tests.experiments.live_backend import GRID, Backend, perform

H100 = Path(__file__).parents[2] / "results" / "h100"


INDEPENDENT = AcceptanceChoice("independent", (0.7,))


def test_a_simulation_beyond_the_profile_is_a_row(tmp_path: Path) -> None:
    synthetic.profile().save(tmp_path / "profile")
    simulated = {"mode": "simulated", "profile": str(tmp_path / "profile"), "calibration": None, "k": ["4", "7"]}
    outcome = perform(tmp_path / "out", **simulated)
    failures = outcome.cells.failures()
    assert len(failures) == 8
    assert all("k7" in failure and "draft_length" in failure for failure in failures)
    assert len(outcome.runs) == 8


def test_processes_change_nothing_but_the_time(tmp_path: Path) -> None:
    synthetic.profile().save(tmp_path / "profile")
    values = {**GRID, "mode": "simulated", "profile": str(tmp_path / "profile"), "calibration": None}
    for jobs in (1, 2):
        Runner(Experiment.from_dict(values), tmp_path / str(jobs), Backend(), jobs=jobs).run()
    for alone, together in zip(*(load_runs("x", tmp_path / n / "simulated") for n in "12"), strict=True):
        assert alone.name == together.name
        pd.testing.assert_frame_equal(alone.requests, together.requests)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair": "another"}, "pair = 'another': the profile is of 'made-up pair'"),
        ({"max_context": 100_000}, "max_context = 100000"),
        ({"workload": {"prompt_tokens": "600"}}, "max_context = 507: no prompt fits"),
        ({"acceptance": "often"}, "acceptance = 'often'"),
        ({"acceptance": "tape"}, "acceptance = 'tape': the profile has no tapes"),
    ],
)
def test_what_a_profile_cannot_answer_is_refused_before_any_work(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    synthetic.profile().save(tmp_path / "profile")
    simulated = {"mode": "simulated", "profile": str(tmp_path / "profile"), "calibration": None}
    with pytest.raises(InputError, match=message):
        perform(tmp_path / "out", **{**simulated, **change})
    assert not (tmp_path / "out").exists()


def test_all_that_decides_a_simulation_is_in_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def described(**info: Any) -> dict[str, Any]:
        profile = synthetic.profile()
        profile.info |= info
        return Prediction(profile, INDEPENDENT).describe()

    assert described() == described()
    tapes = ([-1, 1, 0], [-1, 1, 1])
    taped = [dataclasses.replace(synthetic.profile(), tapes={0: np.array(tape, dtype=np.int8)}) for tape in tapes]
    changed = [described(max_context=128), described(device="another"), described(batch_buckets=[1, 8])]
    changed += [Prediction(profile, INDEPENDENT).describe() for profile in taped]
    changed += [Prediction(synthetic.profile(slower=2.0), INDEPENDENT).describe()]
    digests = {fingerprint(each) for each in (described(), *changed)}
    assert len(digests) == 1 + len(changed)
    monkeypatch.setattr(predicting, "program", lambda: "another version")
    assert fingerprint(described()) not in digests


def test_without_a_live_run_a_permutation_pair_accepts_what_its_closed_form_says(tmp_path: Path) -> None:
    """As many tokens per verify as an H100 had for the same prompts."""
    live = pd.read_csv(H100 / "layouts.csv")
    cell = live[(live["layout"] == "PD 1/6") & (live["clients"] == 10)].iloc[0]
    profile = Profile.load(H100 / "profile-llama2-7b")
    choice = predicting.without_live(profile)
    assert choice == predicting.CLOSED_FORM
    assert predicting.without_live(synthetic.profile()) == predicting.FROM_PROFILE
    found = []
    for seed in (0, 1):
        lengths = FixedLength(128)
        workload = make_workload(int(cell["requests"]), lengths, lengths, concurrency=10, seed=seed)
        run = predicting.predict(PD.replace(slots=64), workload, Prediction(profile, choice))
        found.append(acceptance(run)["acceptance_length"])
    assert found[0] == pytest.approx(cell["acceptance_length"], rel=1e-5)
    assert found[1] != pytest.approx(cell["acceptance_length"], rel=1e-3)  # other prompts, other drafts


def test_the_profile_of_an_h100_predicts_what_was_served_on_it(tmp_path: Path) -> None:
    """Throughput of whole loops with the configuration's pair and lengths, beside the study that was served live."""
    live = pd.read_csv(H100 / "layouts.csv").set_index(["layout", "clients"])
    names = {"PD 1-6": "PD 1/6", "PDV 1-6-12": "PDV 1/6/12", "PD 4-64": "PD 4/64", "PDV 4-64-64": "PDV 4/64/64"}
    shipped = Experiment.load("layouts", profile=str(H100 / "profile-llama2-7b"))
    values = {name: value for name, value in shipped.resolved().items() if name not in ("device", "calibration")}
    values |= {"mode": "simulated", "repeats": 1, "seed": 0, "concurrencies": [1, 5, 16]}
    values["architectures"] = [a for a in values["architectures"] if a["name"] in names]
    outcome = Runner(Experiment.from_dict(values), tmp_path, Backend(), jobs=1).run()
    errors = []
    for row in outcome.cells.frame().to_dict("records"):
        served = live.loc[(names[row["architecture"]], int(row["level"]))]
        errors.append(row["steady_throughput_tokens_per_s"] / served["tokens_per_s"] - 1)
    assert len(errors) == 12
    assert np.nanmean(np.abs(errors)) < 0.1
