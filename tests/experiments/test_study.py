"""The study of layouts: what was measured on a GPU is still predicted, and the soak's checks hold on the CPU."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from calibrate.profile import Profile
from engines.architecture import PDV
from experiments.layouts_predicted import predicted
from experiments.study import SLOTS, layouts

RESULTS = Path(__file__).parents[2] / "results" / "h100"


def test_the_profile_of_an_h100_predicts_what_was_served_on_it() -> None:
    live = pd.read_csv(RESULTS / "layouts.csv")
    few = live[live["study"].isin(["default limits", "equal limits"]) & (live["clients"] <= 32)]
    table = predicted(few, Profile.load(RESULTS / "profile-llama2-7b"))
    assert len(table) == 32
    assert table["tokens_per_s_error"].abs().mean() < 0.07
    assert table["tokens_per_s_error"].abs().max() < 0.35
    wrong = few.assign(overall_tokens_per_s=few["overall_tokens_per_s"] * 1.2)
    assert predicted(wrong, Profile.load(RESULTS / "profile-llama2-7b"))["tokens_per_s_error"].abs().mean() > 0.1


def test_layouts_have_names_of_their_own_and_room_for_every_client() -> None:
    study = list(layouts())
    assert len({layout.name for layout in study}) == len(study)
    assert all(layout.architecture.slots == SLOTS >= max(layout.clients) for layout in study)


@pytest.mark.live
def test_a_short_soak_loses_nothing() -> None:
    pytest.importorskip("torch")
    from experiments.soak import soak

    found = soak(PDV.replace(slots=8), "cpu", requests=200, clients=12)
    assert int(str(found["finished"])) + int(str(found["cancelled"])) == 200
    assert int(str(found["finished"])) > 0
    assert int(str(found["cancelled"])) > 0
