"""An experiment finishes what it began, keeps what is finished, and leaves nobody else's files harmed."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import PD
from engines.record.metrics import acceptance
from engines.record.run import Run
from engines.workload.workload import FixedLength, Workload, make_workload
from experiments.cli import main
from experiments.program.progress import Bar, Report
from experiments.runner import predict as predicting
from experiments.runner.cells import fingerprint, keep, kept, load_runs
from experiments.runner.config import Experiment
from experiments.runner.experiment import Outcome, Runner
from experiments.runner.layouts import Layout
from experiments.runner.live import Serve
from experiments.runner.predict import AcceptanceChoice, Prediction
from tests.experiments import synthetic

H100 = Path(__file__).parents[2] / "results" / "h100"
GRID: dict[str, Any] = {
    "architectures": ["baseline", "pdv"],
    "concurrencies": [1, 3],
    "repeats": 2,
    "pair": "made-up pair",
    "workload": {"requests": 6, "prompt_tokens": "16-48", "output_tokens": "16-32"},
    "calibration": {"batches": [1, 4], "contexts": [32, 80], "prompt_tokens": [16, 48]},
}
CELLS = ["baseline-c1-k4", "baseline-c3-k4", "pdv-c1-k4", "pdv-c3-k4"]
INDEPENDENT = AcceptanceChoice("independent", (0.7,))


class Laboratory:
    """Stands in for a device: 'live' runs are simulations on a made-up device that is 4% slower than its profile
    says. `interrupt_at` interrupts one of its calls, as a user might; `broken` cells raise this error."""

    def __init__(self, interrupt_at: int | None = None, broken: dict[str, Exception] | None = None) -> None:
        self.served: list[str] = []
        self.opened: list[str] = []
        self.measured: list[dict[str, list[int]]] = []
        self.interrupt_at, self.broken = interrupt_at, broken or {}
        self.exactness: dict[str, Any] | None = None
        self.slots: int | None = None

    def check(self, layouts: Sequence[tuple[Layout, Sequence[Workload]]], points: dict[str, list[int]] | None) -> str:
        self.resolved = {layout.architecture.name: layout.architecture for layout, _ in layouts}
        return str(synthetic.INFO["device"])

    @contextmanager
    def engine(self, layout: Layout, workloads: Sequence[Workload]) -> Iterator[Serve]:
        architecture = self.resolved[layout.architecture.name]
        self.opened.append(architecture.name)

        def serve(workload: Workload, progress: Report) -> Run:
            name = f"{architecture.name}-c{workload.concurrency}"
            if len(self.served) == self.interrupt_at:
                raise KeyboardInterrupt
            if name in self.broken:
                raise self.broken[name]
            self.served.append(name)
            layout = architecture if self.slots is None else architecture.replace(slots=self.slots)
            run = synthetic.live(layout, seed=len(self.served), slower=1.04, asked=workload)
            run.info |= {} if self.exactness is None else {"exactness": self.exactness}
            return run

        yield serve

    def measure(self, points: dict[str, list[int]], budget_s: float, unfinished: Path, progress: Bar) -> Profile:
        self.measured.append(points)
        return synthetic.profile()


def perform(folder: Path, laboratory: Laboratory | None = None, only: str | None = None, **change: Any) -> Outcome:
    experiment = Experiment.from_dict({**GRID, **change})
    return Runner(experiment, folder, laboratory or Laboratory(), only=only, jobs=1).run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, list[Laboratory]]:
    """An experiment that was interrupted in its second round and called again."""
    folder = tmp_path_factory.mktemp("experiment")
    laboratories = [Laboratory(interrupt_at=5), Laboratory()]
    with pytest.raises(KeyboardInterrupt):
        perform(folder, laboratories[0])
    return folder, perform(folder, laboratories[1]), laboratories


Finished = tuple[Path, Outcome, list[Laboratory]]


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


def test_everything_is_in_the_folder(finished: Finished) -> None:
    folder, outcome, _ = finished
    assert len(list((folder / "live").glob("*/run.toml"))) == 8
    assert len(list((folder / "simulated").glob("*/run.toml"))) == 24  # each repeat, its replay and its blind one
    assert Profile.load(folder / "profile").info["averaged"] == 2
    assert "over 4 cells" in (folder / "comparison.txt").read_text()
    assert {path.stem for path in outcome.figures} == {
        "stage_costs", "contention", "acceptance", "error_distribution", "predicted_measured", "load",
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
        assert f"it has no {side} run; make them with `pdv experiment {tmp_path}/experiment.toml" in line
    assert main(["compare", str(tmp_path), "--only", "pd-*"]) == 2
    assert "no cell has such a name; the experiment has baseline-c1-k4, pdv-c1-k4" in capsys.readouterr().err


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
    laboratory = Laboratory()
    perform(tmp_path, laboratory, concurrencies=[1])
    before = (tmp_path / "simulated" / "pdv-c1-k4-r1" / "run.toml").stat().st_mtime_ns
    perform(tmp_path, laboratory, concurrencies=[1])
    assert len(laboratory.served) == 4
    assert len(laboratory.measured) == 2
    assert (tmp_path / "simulated" / "pdv-c1-k4-r1" / "run.toml").stat().st_mtime_ns == before
    (tmp_path / "profile" / "part-1" / "stage_costs.csv").write_text("not a table")
    perform(tmp_path, laboratory, concurrencies=[1], workload={**GRID["workload"], "requests": 5})
    assert len(laboratory.served) == 8
    assert len(laboratory.measured) == 3


@pytest.mark.parametrize("error", [RuntimeError("the engine failed"), InputError("x", 1, "beyond")])
def test_a_cell_that_fails_is_a_row_and_the_others_are_done(error: Exception, tmp_path: Path) -> None:
    laboratory = Laboratory(broken={"pdv-c1": error})
    outcome = perform(tmp_path, laboratory, repeats=1)
    assert laboratory.served == ["baseline-c1", "baseline-c3", "pdv-c3"]
    assert outcome.cells.failures() == [f"pdv-c1-k4, repeat 1, live: {error}"]
    assert outcome.comparison is not None
    table = pd.read_csv(tmp_path / "cells.csv").set_index(["cell", "kind"])
    assert table.loc[("pdv-c1-k4", "live"), "status"] == "failed"
    assert ("pdv-c1-k4", "simulated") not in table.index
    assert table.loc[("pdv-c3-k4", "simulated"), "status"] == "finished"
    assert not perform(tmp_path, Laboratory(), repeats=1).cells.failures()


def test_a_simulation_beyond_the_profile_is_a_row(tmp_path: Path) -> None:
    synthetic.profile().save(tmp_path / "profile")
    simulated = {"mode": "simulated", "profile": str(tmp_path / "profile"), "calibration": None, "k": ["4", "7"]}
    outcome = perform(tmp_path / "out", **simulated)
    failures = outcome.cells.failures()
    assert len(failures) == 8
    assert all("k7" in failure and "draft_length" in failure for failure in failures)
    assert len(outcome.runs) == 8


def test_a_wrong_output_fails_its_cell(tmp_path: Path) -> None:
    laboratory = Laboratory()
    laboratory.exactness = {"checked": 6, "equal": 5, "first": "request 2, output token 3"}
    outcome = perform(tmp_path, laboratory, only="live", repeats=1, concurrencies=[1])
    assert len(outcome.cells.failures()) == 2
    assert "1 of 6 outputs are wrong: request 2, output token 3" in outcome.cells.failures()[0]
    assert outcome.cells.frame()[["checked", "equal"]].to_numpy().tolist() == [[6, 5], [6, 5]]


def test_halves_can_be_done_one_after_the_other(tmp_path: Path) -> None:
    laboratory = Laboratory()
    first = perform(tmp_path, laboratory, only="live")
    assert (first.comparison, len(first.runs), len(laboratory.measured)) == (None, 8, 2)
    second = perform(tmp_path, Laboratory(interrupt_at=0), only="simulated")
    assert second.comparison is not None
    assert len(second.comparison.paired) == 8 * 3
    profile = {"profile": str(tmp_path / "profile"), "mode": "simulated", "calibration": None}
    with pytest.raises(InputError, match="only = 'live': the mode"):
        perform(tmp_path, only="live", **profile)


def test_no_work_begins_once_the_time_is_up(tmp_path: Path) -> None:
    laboratory = Laboratory()
    outcome = Runner(Experiment.from_dict(GRID), tmp_path, laboratory, budget_s=1e-9).run()
    assert (outcome.left, laboratory.served, laboratory.measured, outcome.comparison) == (8, [], [], None)


def test_all_runs_of_an_architecture_have_the_slots_of_the_first(tmp_path: Path) -> None:
    first, second = Laboratory(interrupt_at=3), Laboratory()
    first.slots = 5
    with pytest.raises(KeyboardInterrupt):
        perform(tmp_path, first)
    perform(tmp_path, second)
    assert {name: layout.slots for name, layout in second.resolved.items()} == {"baseline": 5, "pdv": 5}
    runs = load_runs("live", tmp_path / "live")
    assert {run.info["architecture"]["slots"] for run in runs} == {5}


def test_processes_change_nothing_but_the_time(tmp_path: Path) -> None:
    synthetic.profile().save(tmp_path / "profile")
    values = {**GRID, "mode": "simulated", "profile": str(tmp_path / "profile"), "calibration": None}
    for jobs in (1, 2):
        Runner(Experiment.from_dict(values), tmp_path / str(jobs), Laboratory(), jobs=jobs).run()
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


def test_live_cells_run_on_the_device_of_a_given_profile(tmp_path: Path) -> None:
    profile = synthetic.profile()
    profile.info["device"] = "another"
    profile.save(tmp_path / "profile")
    with pytest.raises(InputError, match="profile device = 'another'"):
        perform(tmp_path / "out", profile=str(tmp_path / "profile"))


@pytest.mark.parametrize(
    "place", ["comparison.csv", "cells.csv", "figures", "profile", "live/pdv-c1-k4-r2", "experiment.toml"]
)
def test_nothing_is_replaced_that_no_experiment_made(place: str, tmp_path: Path) -> None:
    laboratory, mine = Laboratory(), tmp_path / place
    if place == "profile":
        synthetic.profile().save(mine)
    elif "." in place:
        mine.write_text("mine = 1")
    else:
        mine.mkdir(parents=True)
        (mine / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"out = .*was not written by an experiment"):
        perform(tmp_path, laboratory)
    assert laboratory.served == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_record_of_the_users_in_the_place_of_a_cell_stays(tmp_path: Path) -> None:
    perform(tmp_path, only="live", repeats=1, concurrencies=[1])
    mine = tmp_path / "simulated" / "pdv-c3-k4-r1"
    synthetic.simulated(name="mine").save(mine)
    laboratory = Laboratory()
    with pytest.raises(InputError, match=r"pdv-c3-k4-r1'.*not written by this command; move it"):
        perform(tmp_path, laboratory)
    assert (Run.load(mine).name, laboratory.served) == ("mine", [])


def test_an_interrupted_or_damaged_record_is_not_a_finished_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = synthetic.simulated(), tmp_path / "cell"

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            keep(run, folder, "digest")
    assert kept(folder, "digest") is None
    keep(run, folder, "digest")
    assert kept(folder, "digest") is not None
    assert kept(folder, "another digest") is None
    (folder / "steps.parquet").write_bytes(b"not a table")
    assert kept(folder, "digest") is None


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


def test_hidden_folders_are_no_runs_and_a_damaged_run_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", ".b.unfinished"):
        synthetic.simulated(name=name).save(tmp_path / name)
    assert [run.name for run in load_runs("live", tmp_path)] == ["a", "b"]
    (tmp_path / "b" / "spans.parquet").write_bytes(b"not a table")
    with pytest.raises(InputError, match=rf"run = '{tmp_path}/b/spans.parquet': missing or damaged"):
        load_runs("live", tmp_path)


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
    outcome = Runner(Experiment.from_dict(values), tmp_path, Laboratory(), jobs=1).run()
    errors = []
    for row in outcome.cells.frame().to_dict("records"):
        served = live.loc[(names[row["architecture"]], int(row["level"]))]
        errors.append(row["steady_throughput_tokens_per_s"] / served["tokens_per_s"] - 1)
    assert len(errors) == 12
    assert np.nanmean(np.abs(errors)) < 0.1
