"""An experiment finishes what it began, and keeps what is finished."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pandas as pd
import pytest

from calibrate.profile import Profile
from engines.errors import InputError
from engines.record.metrics import acceptance
from engines.record.run import Run
from experiments.cli import main
from experiments.runner.cells import load_runs
from experiments.runner.config import Experiment
from experiments.runner.experiment import Outcome, Runner
from tests.experiments import synthetic
from tests.experiments.live_backend import CELLS, GRID, Backend, perform


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, list[Backend]]:
    """An experiment that was interrupted in its second round and called again."""
    folder = tmp_path_factory.mktemp("experiment")
    backends = [Backend(interrupt_at=5), Backend()]
    with pytest.raises(KeyboardInterrupt):
        perform(folder, backends[0])
    return folder, perform(folder, backends[1]), backends


Finished = tuple[Path, Outcome, list[Backend]]


def test_rounds_go_there_and_back_with_one_engine_per_architecture_and_go_on_where_they_stopped(
    finished: Finished,
) -> None:
    _, _, (first, second) = finished
    assert first.served == ["baseline-c1", "baseline-c3", "pdv-c1", "pdv-c3", "pdv-c3"]
    assert first.opened == ["baseline", "pdv", "pdv"]
    assert second.served == ["pdv-c1", "baseline-c3", "baseline-c1"]
    assert second.opened == ["pdv", "baseline"]
    assert len(first.measured) == len(second.measured) == 1  # a part after each round
    assert first.measured[0]["draft_lengths"] == [4]


def test_what_a_draft_length_weighs_is_measured_before_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what needs the same engine shares it, under its own name."""
    backend, weighed, measured = Backend(), list[object](), list[int]()
    engine, measure = backend.engine, backend.measure
    monkeypatch.setattr(
        backend, "engine", lambda layout, loads, profile: (weighed.append(profile), engine(layout, loads, profile))[1]
    )
    monkeypatch.setattr(backend, "measure", lambda *args: (measured.append(len(backend.served)), measure(*args))[1])
    entry = {"base": "pd", "slots": 6}
    entries = [{**entry, "name": "calm", "concurrencies": [1]}, {**entry, "name": "busy", "concurrencies": [3]}]
    outcome = perform(
        tmp_path, backend, architectures=entries, concurrencies=[], k=["4", "load4-4"], max_context=100, repeats=2
    )
    assert measured == [0, 8]  # the first part before the first round, the second after the second
    assert len(weighed) == 2  # one engine per round
    assert all(isinstance(profile, Profile) for profile in weighed)
    names = [run.info["architecture"]["name"] for run in outcome.runs if run.info["kind"] == "live"]
    assert sorted(names) == ["busy"] * 4 + ["calm"] * 4
    lengths = [run.info["architecture"]["draft_length"] for run in outcome.runs if run.info["kind"] == "live"]
    assert lengths.count(4) == 4
    assert all((tmp_path / "live" / f"calm-c1-kload4-4-r{n}" / "run.toml").is_file() for n in (1, 2))


def test_everything_is_in_the_folder(finished: Finished) -> None:
    folder, outcome, _ = finished
    assert len(list((folder / "live").glob("*/run.toml"))) == 8
    assert len(list((folder / "simulated").glob("*/run.toml"))) == 24  # each repeat, its replay and its blind one
    assert Profile.load(folder / "profile").info["averaged"] == 2
    assert "over 4 cells" in (folder / "comparison.txt").read_text()
    assert {path.stem for path in outcome.figures} == {
        "stage_costs", "contention", "acceptance", "error_distribution", "errors", "predicted_measured", "load",
        "decomposition", "timeline_baseline", "timeline_pdv",
    }  # fmt: skip
    assert all(path.stat().st_size > 2000 for path in [*outcome.figures, *outcome.traces])
    resolved = Experiment.from_dict(tomllib.loads((folder / "experiment.toml").read_text()))
    assert resolved == Experiment.from_dict(GRID)


def test_compare_and_figures_give_what_the_experiment_gave(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, outcome, _ = finished
    capsys.readouterr()
    assert main(["compare", str(folder), "--out", str(tmp_path / "c.csv")]) == 0
    assert capsys.readouterr().out.startswith((folder / "comparison.txt").read_text())
    for name in ("c.csv", "c_paired.csv"):
        assert (tmp_path / name).read_text() == (folder / name.replace("c", "comparison", 1)).read_text()
    assert main(["figures", str(folder), "--out", str(tmp_path / "drawn")]) == 0
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {path.name for path in outcome.figures}
    assert main(["compare", str(folder), "--only", "pdv-*", "--out", str(tmp_path / "c.csv")]) == 0
    chosen, whole = pd.read_csv(tmp_path / "c.csv"), pd.read_csv(folder / "comparison.csv")
    pd.testing.assert_frame_equal(chosen, whole[whole["architecture"] == "pdv"].reset_index(drop=True))


@pytest.mark.parametrize("side", ["live", "simulated"])
def test_an_experiment_without_a_side_cannot_be_compared(
    side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    perform(tmp_path, repeats=1, concurrencies=[1], replay=False)
    (tmp_path / side).rename(tmp_path / "elsewhere")
    for command in ("compare", "figures"):
        assert main([command, str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert f"it has no {side} runs; run `pdv experiment {tmp_path}/experiment.toml" in line
    assert main(["compare", str(tmp_path), "--only", "pd-*"]) == 2
    assert "no cell matches; the experiment has baseline-c1-k4, pdv-c1-k4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *(f"compare {{0}} --out {{0}}/{name}" for name in ("experiment.toml", "cells.csv", "comparison.csv")),
        *(f"compare {{0}} --out {{0}}/{name}" for name in ("comparison.txt", "comparison.x", "traces/pdv-live.json")),
        *(f"compare {{0}} --out {{0}}/{name}" for name in ("profile/contention.csv", "live/pdv-c1-k4-r1/run.toml")),
        *(f"trace {{0}}/live/pdv-c1-k4-r1 --out {{0}}/{name}" for name in ("traces/pdv-live.json", "cells.csv")),
        "trace {0}/live/pdv-c1-k4-r1 --out {0}/live/pdv-c1-k4-r1/spans.parquet",
        "figures {0} --out {0}/figures",
        "figures {0} --out {0}/profile",
    ],
)
def test_no_command_writes_over_what_an_experiment_has(
    command: str, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, *_ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(command.format(folder).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "it belongs to the " in line
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_table_has_a_row_for_every_run(finished: Finished) -> None:
    folder, _, _ = finished
    table = pd.read_csv(folder / "cells.csv")
    assert len(table) == 4 * 2 * 4
    assert list(dict.fromkeys(table["cell"])) == CELLS
    assert set(table["kind"]) == {"live", "simulated", "replay", "blind"}
    assert (table["status"] == "finished").all()
    assert (table["throughput_tokens_per_s"] > 0).all()
    steady = table[(table["load"] == "concurrency") & (table["kind"] != "replay")]
    assert (steady["steady_throughput_tokens_per_s"] > 0).all()


def test_a_simulation_has_the_workload_the_seed_and_the_outputs_of_its_live_run(finished: Finished) -> None:
    folder, _, _ = finished
    for cell in CELLS:
        pairs = []
        for repeat in (1, 2):
            live, simulated = (Run.load(folder / side / f"{cell}-r{repeat}") for side in ("live", "simulated"))
            assert live.info["workload"]["seed"] == simulated.info["workload"]["seed"] == simulated.info["seed"]
            assert simulated.info["seed"] == repeat - 1
            assert simulated.info["acceptance"]["source"] == "tapes"
            assert acceptance(live) == acceptance(simulated)
            pairs.append(live.requests["prompt_tokens"].tolist())
        assert pairs[0] != pairs[1]


def test_repeats_are_compared_and_every_run_is_paired_with_its_replay(finished: Finished) -> None:
    _, outcome, _ = finished
    assert outcome.comparison is not None
    assert len(outcome.comparison.paired) == 8 * 3
    assert {*outcome.comparison.metrics["differs"], *outcome.comparison.paired["differs"]} == {""}
    assert 0.0 < outcome.comparison.throughput_error < 0.1  # the stand-in is 4% slower than its profile
    assert (outcome.comparison.paired["bias"] < 0).mean() > 0.8


def test_a_finished_experiment_does_nothing_again_and_a_changed_one_its_cells(tmp_path: Path) -> None:
    backend = Backend()
    perform(tmp_path, backend, concurrencies=[1])
    before = (tmp_path / "simulated" / "pdv-c1-k4-r1" / "run.toml").stat().st_mtime_ns
    perform(tmp_path, backend, concurrencies=[1])
    assert len(backend.served) == 4
    assert len(backend.measured) == 2
    assert (tmp_path / "simulated" / "pdv-c1-k4-r1" / "run.toml").stat().st_mtime_ns == before
    (tmp_path / "profile" / "part-1" / "stage_costs.csv").write_text("not a table")
    perform(tmp_path, backend, concurrencies=[1], workload={**GRID["workload"], "requests": 5})
    assert len(backend.served) == 8
    assert len(backend.measured) == 3


@pytest.mark.parametrize("error", [RuntimeError("the engine failed"), InputError("x", 1, "beyond")])
def test_a_cell_that_fails_is_a_row_and_the_others_are_done(error: Exception, tmp_path: Path) -> None:
    backend = Backend(broken={"pdv-c1": error})
    outcome = perform(tmp_path, backend, repeats=1)
    assert backend.served == ["baseline-c1", "baseline-c3", "pdv-c3"]
    assert outcome.cells.failures() == [f"pdv-c1-k4, repeat 1, live: {error}"]
    assert outcome.comparison is not None
    table = pd.read_csv(tmp_path / "cells.csv").set_index(["cell", "kind"])
    assert table.loc[("pdv-c1-k4", "live"), "status"] == "failed"
    assert ("pdv-c1-k4", "simulated") not in table.index
    assert table.loc[("pdv-c3-k4", "simulated"), "status"] == "finished"
    assert not perform(tmp_path, Backend(), repeats=1).cells.failures()


def test_a_wrong_output_fails_its_cell(tmp_path: Path) -> None:
    backend = Backend()
    backend.exactness = {"checked": 6, "equal": 5, "first": "request 2, output token 3"}
    outcome = perform(tmp_path, backend, only="live", repeats=1, concurrencies=[1])
    assert len(outcome.cells.failures()) == 2
    assert "1 of 6 outputs are wrong: request 2, output token 3" in outcome.cells.failures()[0]
    assert outcome.cells.frame()[["checked", "equal"]].to_numpy().tolist() == [[6, 5], [6, 5]]


def test_halves_can_be_done_one_after_the_other(tmp_path: Path) -> None:
    backend = Backend()
    first = perform(tmp_path, backend, only="live")
    assert (first.comparison, len(first.runs), len(backend.measured)) == (None, 8, 2)
    second = perform(tmp_path, Backend(interrupt_at=0), only="simulated")
    assert second.comparison is not None
    assert len(second.comparison.paired) == 8 * 3
    profile = {"profile": str(tmp_path / "profile"), "mode": "simulated", "calibration": None}
    with pytest.raises(InputError, match="only = 'live': the mode"):
        perform(tmp_path, only="live", **profile)


def test_no_work_begins_once_the_time_is_up(tmp_path: Path) -> None:
    backend = Backend()
    outcome = Runner(Experiment.from_dict(GRID), tmp_path, backend, budget_s=1e-9).run()
    assert (outcome.left, backend.served, backend.measured, outcome.comparison) == (8, [], [], None)


def test_all_runs_of_an_architecture_have_the_slots_of_the_first(tmp_path: Path) -> None:
    first, second = Backend(interrupt_at=3), Backend()
    first.slots = 5
    with pytest.raises(KeyboardInterrupt):
        perform(tmp_path, first)
    perform(tmp_path, second)
    assert {name: layout.slots for name, layout in second.resolved.items()} == {"baseline": 5, "pdv": 5}
    runs = load_runs("live", tmp_path / "live")
    assert {run.info["architecture"]["slots"] for run in runs} == {5}


def test_what_is_weighed_live_was_measured(tmp_path: Path) -> None:
    synthetic.profile().save(tmp_path / "profile")  # it has draft length 4 only
    backend = Backend()
    with pytest.raises(
        InputError, match="draft_length = 'load2-4': the profile measured verify at draft lengths 4 only"
    ):
        perform(tmp_path / "out", backend, k=["load2-4"], profile=str(tmp_path / "profile"))
    assert backend.served == []


def test_live_cells_run_on_the_device_of_a_given_profile(tmp_path: Path) -> None:
    profile = synthetic.profile()
    profile.info["device"] = "another"
    profile.save(tmp_path / "profile")
    with pytest.raises(InputError, match="profile device = 'another'"):
        perform(tmp_path / "out", profile=str(tmp_path / "profile"))
