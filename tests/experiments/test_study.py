"""The study of layouts: what was measured on a GPU is still predicted, and the soak's checks hold on the CPU."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import PD, PDV
from engines.record.metrics import acceptance
from engines.workload.workload import FixedLength, make_workload, with_random_prompts
from experiments.runner.layouts_predicted import acceptance_of, predicted, spec_of
from experiments.runner.study import SLOTS, layouts
from sim.engine import simulate
from tests.calibrate.profiles import made_up

RESULTS = Path(__file__).parents[2] / "results" / "h100"


def test_the_profile_of_an_h100_predicts_what_was_served_on_it() -> None:
    live = pd.read_csv(RESULTS / "layouts.csv")
    few = live[live["study"].isin(["default limits", "equal limits"]) & (live["clients"] <= 32)]
    table = predicted(few, Profile.load(RESULTS / "profile-llama2-7b"))
    assert len(table) == 32
    assert table["tokens_per_s_error"].abs().mean() < 0.07
    assert table["tokens_per_s_error"].abs().max() < 0.35
    assert (table["simulated_batch"] / table["live_batch"] - 1).abs().median() < 0.01
    wrong = few.assign(overall_tokens_per_s=few["overall_tokens_per_s"] * 1.2)
    assert predicted(wrong, Profile.load(RESULTS / "profile-llama2-7b"))["tokens_per_s_error"].abs().mean() > 0.1


def test_a_simulated_study_accepts_what_the_live_one_did() -> None:
    live = pd.read_csv(RESULTS / "layouts.csv")
    cell = live[(live["layout"] == "PD 1/6") & (live["clients"] == 10)].iloc[0]
    profile = Profile.load(RESULTS / "profile-llama2-7b")
    workload = make_workload(int(cell["requests"]), FixedLength(128), FixedLength(128), concurrency=10)
    found = {}
    for seed in (0, 1):
        prompted = with_random_prompts(workload, spec_of(profile).target_shape.vocabulary, seed)
        run = simulate(PD.replace(slots=64), prompted, profile, acceptance_of(spec_of(profile), prompted))
        found[seed] = acceptance(run)["acceptance_length"]
    assert found[0] == pytest.approx(cell["acceptance_length"], rel=1e-5)
    assert found[1] != pytest.approx(cell["acceptance_length"], rel=1e-3)  # other prompts, other drafts


def test_a_profile_of_another_pair_predicts_no_study() -> None:
    with pytest.raises(InputError, match="studies are of permutation pairs"):
        spec_of(made_up())


def test_layouts_have_names_of_their_own_and_room_for_every_client() -> None:
    study = list(layouts())
    assert len({layout.name for layout in study}) == len(study)
    assert all(layout.architecture.slots == SLOTS >= max(layout.clients) for layout in study)


@pytest.mark.live
def test_a_short_soak_loses_nothing() -> None:
    pytest.importorskip("torch")
    from experiments.checks.soak import soak

    found = soak(PDV.replace(slots=8), "cpu", requests=200, clients=12)
    assert int(str(found["finished"])) + int(str(found["cancelled"])) == 200
    assert int(str(found["finished"])) > 0
    assert int(str(found["cancelled"])) > 0
