"""`pdv run` with real models, and what is done with its record."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.record.run import Run
from experiments.cli import main
from tests.experiments import synthetic

pytest.importorskip("torch")
pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short live run of the embedded pair, and the profile of a device that is not this one."""
    folder = tmp_path_factory.mktemp("live")
    profile = synthetic.profile()
    profile.stage_costs["draft_length"] = profile.stage_costs["draft_length"].replace(4, 3)
    profile.save(folder / "profile")
    load = "--concurrency 2 --requests 4 --prompt-tokens 16-32 --output-tokens 8-16"
    assert main(f"run --architecture pdv {load} --draft-length 3 --out {folder}/run".split()) == 0
    return folder


def test_a_live_run_is_recorded_with_all_that_happened(work: Path) -> None:
    run = Run.load(work / "run")
    assert run.info["kind"] == "live"
    assert run.info["architecture"]["draft_length"] == 3
    assert len(run.finished) == 4
    assert run.finished["output_tokens"].tolist() == run.finished["max_tokens"].tolist()
    assert {len(tape) for tape in run.tapes.values()} == set(run.finished["output_tokens"])


def test_a_replay_repeats_every_step_of_the_live_run(work: Path) -> None:
    """Acceptance is the tape's, so however wrong the device's times are, every verification ends as it did."""
    command = f"simulate --profile {work}/profile --extrapolate --replay {work}/run --out {work}/replay"
    assert main(command.split()) == 0
    live, replay = Run.load(work / "run"), Run.load(work / "replay")
    assert replay.info["replays"] == "run"
    steps = [
        run.steps[run.steps["emitted"] > 0].sort_values(["request", "position"])[
            ["request", "position", "emitted", "accepted", "rejected", "discarded"]
        ]
        for run in (live, replay)
    ]
    assert steps[0].to_numpy().tolist() == steps[1].to_numpy().tolist()


def test_the_models_context_limits_the_prompts(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"run --requests 2 --prompt-tokens 64 --output-tokens 8 --max-context 32 --out {work}/too_long"
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "pdv: max_context = 32: no prompt fits; the shortest has 64 tokens"
    assert not (work / "too_long").exists()
    assert main([*command.replace("64", "16-64").replace("2 ", "20 ", 1).split()]) == 0  # some fit, and are served


def test_a_folder_without_a_model_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"run --pair {work}/profile".split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pdv: draft = None: ")


def test_tokenising_a_text_beyond_the_context_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import tokenization_utils_base

    from engines.live.model.pairs import load_pair

    warnings: list[str] = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", lambda text, *rest: warnings.append(text))
    pair = load_pair("embedded")
    assert pair.encode is not None
    assert len(pair.encode("word " * 3000)) > pair.max_context
    assert warnings == []
