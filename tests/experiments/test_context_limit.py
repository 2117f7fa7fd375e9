"""A simulated engine has the context of the live one that it stands for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tomli_w

from engines.policy.architecture import PDV
from engines.policy.context import context_of
from engines.policy.draft_length import FixedDraftLength
from engines.record.run import Run
from engines.workload.workload import FixedLength, make_workload
from experiments.cli import main
from experiments.runner.predict import Prediction, parse_acceptance, predict
from tests.experiments import synthetic


@pytest.mark.parametrize("k", [1, 4])
def test_a_simulated_engine_ends_outputs_where_a_live_one_would(k: int) -> None:
    """The profile says what the models position; how much of it is for requests depends on the drafts."""
    architecture = PDV.replace(draft_length=FixedDraftLength(k))
    workload = make_workload(1, FixedLength(300), FixedLength(1000), concurrency=1)
    profile = synthetic.profile()
    costs = profile.stage_costs.assign(draft_length=profile.stage_costs["draft_length"].replace(4, k))
    profile = dataclasses.replace(profile, stage_costs=costs)
    settings = Prediction(profile, parse_acceptance("0.7"), extrapolate=True)
    run = predict(architecture, workload, settings)
    limit = context_of(profile.info["max_context"], k)
    assert run.info["max_context"] == limit == 512 - k - 1
    assert run.requests["output_tokens"].tolist() == [limit - 300]
    assert run.requests["finish_reason"].tolist() == ["context"]


def test_a_replay_has_the_context_of_the_engine_that_it_repeats() -> None:
    workload = make_workload(1, FixedLength(30), FixedLength(100), concurrency=1)
    settings = Prediction(synthetic.profile(), parse_acceptance("0.7"), extrapolate=True)
    live = predict(PDV, workload, settings)
    live.info |= {"kind": "live", "max_context": 80}
    assert predict(PDV, workload, settings, live=live).requests["output_tokens"].tolist() == [50]


def test_an_experiment_has_the_context_of_its_configuration(tmp_path: Path) -> None:
    """As live engines have; another one is another cell, and one that the models lack is refused at once."""
    synthetic.profile().save(tmp_path / "profile")
    grid = {
        "mode": "simulated", "profile": "profile", "acceptance": "0.7", "architectures": ["pdv"],
        "concurrencies": [1], "workload": {"requests": 1, "prompt_tokens": "30", "output_tokens": "100"},
    }  # fmt: skip

    def performed(**context: int) -> int:
        (tmp_path / "grid.toml").write_text(tomli_w.dumps({**grid, **context}))
        return main(["experiment", f"{tmp_path}/grid.toml", "--jobs", "1", "--out", f"{tmp_path}/out"])

    def outputs() -> list[int]:
        return list(Run.load(tmp_path / "out" / "simulated" / "pdv-c1-k4-r1").requests["output_tokens"])

    assert performed() == 0
    assert outputs() == [100]
    assert performed(max_context=80) == 0
    assert outputs() == [50]
    assert performed(max_context=1_000_000) == 2
    assert outputs() == [50]
