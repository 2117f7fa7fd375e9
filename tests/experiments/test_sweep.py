"""Sweeps and demos finish what they began, and keep what is finished."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibrate.profile import Profile
from engines.errors import InputError
from engines.record.run import Run
from experiments.program.progress import Bar, Report
from experiments.runner import predict as predicting
from experiments.runner import sweep as sweeping
from experiments.runner.cells import fingerprint, keep, kept, load_runs
from experiments.runner.config import Experiment, Point
from experiments.runner.demo import Demo, Results
from experiments.runner.predict import AcceptanceChoice, Prediction
from tests.experiments import synthetic

GRID: dict[str, Any] = {
    "architectures": ["baseline", "pdv"],
    "concurrencies": [1, 3],
    "repeats": 2,
    "workload": {"requests": 6, "prompt_tokens": "16-48", "output_tokens": "16-32"},
}
INDEPENDENT = AcceptanceChoice("independent", (0.7,))


@pytest.fixture
def experiment() -> Experiment:
    return Experiment.from_dict(GRID)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """Every call of the function from here on, by its first two arguments."""
    calls: list[Any] = []
    original = getattr(module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[:2])
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, call)
    return calls


def test_a_sweep_does_not_repeat_finished_cells(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Prediction(synthetic.profile(), INDEPENDENT)
    calls = counted(monkeypatch, sweeping, "predict")
    first = sweeping.sweep(experiment, settings, tmp_path, jobs=1)
    assert [run.name for run in first] == ["baseline-c1-k4", "pdv-c1-k4", "baseline-c3-k4", "pdv-c3-k4"]
    assert len(calls) == 4
    again = sweeping.sweep(experiment, settings, tmp_path, jobs=1)
    assert len(calls) == 4
    for one, other in zip(first, again, strict=True):
        pd.testing.assert_frame_equal(one.spans, other.spans)
    for unfinished in (tmp_path / "pdv-c1-k4").iterdir():
        unfinished.unlink()
    sweeping.sweep(experiment, settings, tmp_path, jobs=1)
    assert len(calls) == 5


def test_a_sweep_repeats_cells_whose_settings_changed(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, sweeping, "predict")
    for settings in (
        Prediction(synthetic.profile(), INDEPENDENT),
        Prediction(synthetic.profile(), INDEPENDENT, seed=1),
        Prediction(synthetic.profile(), INDEPENDENT, jitter=False),
        Prediction(synthetic.profile(slower=2.0), INDEPENDENT),
    ):
        sweeping.sweep(experiment, settings, tmp_path, jobs=1)
    assert len(calls) == 16
    longer = Experiment.from_dict({**GRID, "workload": {**GRID["workload"], "requests": 7}})
    sweeping.sweep(longer, Prediction(synthetic.profile(), INDEPENDENT), tmp_path, jobs=1)
    assert len(calls) == 20


def test_processes_change_nothing_but_the_time(experiment: Experiment, tmp_path: Path) -> None:
    settings = Prediction(synthetic.profile(), INDEPENDENT)
    alone = sweeping.sweep(experiment, settings, tmp_path / "alone", jobs=1)
    seen: list[tuple[int, int]] = []
    together = sweeping.sweep(
        experiment, settings, tmp_path / "together", jobs=2, progress=lambda done, total: seen.append((done, total))
    )
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one.requests, other.requests)
    assert seen == [(done, 4) for done in range(5)]


def test_an_interrupted_record_is_not_a_finished_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


class SimulatedLaboratory:
    """Stands in for a device: 'live' runs are simulations on a made-up device that is 4 % slower than its
    profile says. `fail_at` interrupts one of its calls, as a user might."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.served: list[str] = []
        self.measured: list[dict[str, list[int]]] = []
        self.fail_at = fail_at

    def serve(self, point: Point, progress: Report) -> Run:
        if len(self.served) == self.fail_at:
            raise KeyboardInterrupt
        self.served.append(point.name)
        return synthetic.live(point.architecture.name, seed=len(self.served), slower=1.04, asked=point.workload)

    def measure(self, points: dict[str, list[int]], budget_s: float, unfinished: Path, progress: Bar) -> Profile:
        self.measured.append(points)
        return synthetic.profile()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results, list[SimulatedLaboratory]]:
    """A demo that was interrupted in its second round and called again."""
    folder = tmp_path_factory.mktemp("demo")
    laboratories = [SimulatedLaboratory(fail_at=5), SimulatedLaboratory(), SimulatedLaboratory()]
    experiment = Experiment.from_dict(GRID)
    with pytest.raises(KeyboardInterrupt):
        Demo(experiment, folder, laboratories[0]).run()
    results = Demo(experiment, folder, laboratories[1]).run()
    return folder, results, laboratories


def test_a_demo_goes_on_where_it_was_interrupted(
    finished: tuple[Path, Results, list[SimulatedLaboratory]],
) -> None:
    _, _, (first, second, _) = finished
    assert first.served == ["baseline-c1-k4", "pdv-c1-k4", "baseline-c3-k4", "pdv-c3-k4", "pdv-c3-k4"]
    assert second.served == ["baseline-c3-k4", "pdv-c1-k4", "baseline-c1-k4"]  # the second round goes backwards
    assert len(first.measured) == len(second.measured) == 1  # a part after each round
    assert first.measured[0]["draft_lengths"] == [4]


def test_every_other_round_of_a_demo_goes_backwards(tmp_path: Path) -> None:
    demo = Demo(Experiment.from_dict({**GRID, "repeats": 3}), tmp_path, SimulatedLaboratory())
    there, back, again = ([(point.name, repeat) for point, repeat in cells] for cells in demo._rounds())
    assert there == [(name, 1) for name in ("baseline-c1-k4", "pdv-c1-k4", "baseline-c3-k4", "pdv-c3-k4")]
    assert back == [(name, 2) for name, _ in reversed(there)]
    assert again == [(name, 3) for name, _ in there]


def test_a_demo_leaves_everything_in_its_folder(
    finished: tuple[Path, Results, list[SimulatedLaboratory]],
) -> None:
    folder, results, _ = finished
    assert len(results.lives) == len(list((folder / "runs").glob("*/run.toml"))) == 8
    assert len(results.simulations) == len(list((folder / "simulated").glob("*/run.toml"))) == 12
    assert Profile.load(folder / "profile").info["pair"] == "made-up pair"
    assert Profile.load(folder / "profile").info["averaged"] == 2
    assert "mean absolute errors over 4 cells" in (folder / "comparison.txt").read_text()
    assert {path.stem for path in results.figures} == {
        "stage_costs", "contention", "acceptance", "load", "decomposition", "timeline_baseline", "timeline_pdv",
    }  # fmt: skip
    assert all(path.stat().st_size > 2000 for path in [*results.figures, *results.traces])


def test_a_demo_compares_each_cell_with_its_repeats_and_pairs_each_run(
    finished: tuple[Path, Results, list[SimulatedLaboratory]],
) -> None:
    _, results, _ = finished
    grid = results.comparison.grid()
    assert grid["throughput_live_spread"].notna().all()
    assert len(results.comparison.paired) == 8 * 3
    assert {*results.comparison.metrics["differs"], *results.comparison.paired["differs"]} == {""}
    assert 0.0 < results.comparison.throughput_error < 0.1  # the stand-in is 4 % slower than its profile
    assert (results.comparison.paired["bias"] < 0).mean() > 0.8


def test_a_damaged_cell_is_not_kept(tmp_path: Path) -> None:
    keep(synthetic.simulated(), tmp_path / "cell", "digest")
    (tmp_path / "cell" / "steps.parquet").write_bytes(b"not a table")
    assert kept(tmp_path / "cell", "digest") is None


def test_a_damaged_part_of_the_calibration_is_measured_again(tmp_path: Path) -> None:
    backend = SimulatedLaboratory()
    demo = Demo(Experiment.from_dict(GRID), tmp_path, backend)
    demo._calibration(1)
    demo._calibration(1)
    assert len(backend.measured) == 1
    (tmp_path / "profile" / "part-1" / "stage_costs.csv").write_text("not a table")
    demo._calibration(1)
    assert len(backend.measured) == 2


def test_a_changed_experiment_serves_its_cells_again(
    finished: tuple[Path, Results, list[SimulatedLaboratory]],
) -> None:
    folder, _, laboratories = finished
    changed = Experiment.from_dict({**GRID, "repeats": 1, "workload": {**GRID["workload"], "requests": 5}})
    demo = Demo(changed, folder, laboratories[2])
    demo._live(demo.points[0], 1, lambda done, total: None, 0, 1)
    assert laboratories[2].served == ["baseline-c1-k4"]


def test_a_sweep_touches_nothing_that_it_did_not_make(experiment: Experiment, tmp_path: Path) -> None:
    """A record of the user's, with notes, in the place of a cell: refused before any other cell is simulated."""
    settings, mine = Prediction(synthetic.profile(), INDEPENDENT), tmp_path / "pdv-c3-k4"
    synthetic.simulated(name="mine").save(mine)
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"pdv-c3-k4'.*not written by this command; move what is there"):
        sweeping.sweep(experiment, settings, tmp_path, jobs=1)
    assert Run.load(mine).name == "mine"
    assert (mine / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["pdv-c3-k4"]


def test_notes_beside_a_cell_stay_when_it_is_made_again(experiment: Experiment, tmp_path: Path) -> None:
    first = Prediction(synthetic.profile(), INDEPENDENT)
    sweeping.sweep(experiment, first, tmp_path, jobs=1)
    (tmp_path / "pdv-c1-k4" / "notes.txt").write_text("mine")
    sweeping.sweep(experiment, Prediction(synthetic.profile(), INDEPENDENT, seed=1), tmp_path, jobs=1)
    assert (tmp_path / "pdv-c1-k4" / "notes.txt").read_text() == "mine"
    assert Run.load(tmp_path / "pdv-c1-k4").info["seed"] == 1


def test_an_architecture_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "victim-c1-k4").mkdir()
    (tmp_path / "victim-c1-k4" / "notes.txt").write_text("mine")
    grid = {**GRID, "architectures": [{"base": "pdv", "name": "../victim"}], "concurrencies": [1]}
    with pytest.raises(InputError, match="a name has no slashes"):
        sweeping.sweep(Experiment.from_dict(grid), Prediction(synthetic.profile()), tmp_path / "out", jobs=1)
    assert (tmp_path / "victim-c1-k4" / "notes.txt").exists()


def test_all_that_decides_a_cell_is_in_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def described(**info: Any) -> dict[str, Any]:
        profile = synthetic.profile()
        profile.info |= info
        return Prediction(profile, INDEPENDENT).describe()

    assert described() == described()
    taped = synthetic.profile()
    taped.tapes = {0: np.array([-1, 1, 0], dtype=np.int8)}
    other = synthetic.profile()
    other.tapes = {0: np.array([-1, 1, 1], dtype=np.int8)}
    changed = [described(max_context=128), described(device="another"), described(batch_buckets=[1, 8])]
    changed += [Prediction(profile, INDEPENDENT).describe() for profile in (taped, other)]
    digests = {fingerprint(each) for each in (described(), *changed)}
    assert len(digests) == 1 + len(changed)
    monkeypatch.setattr(predicting, "program", lambda: "another version")
    assert fingerprint(described()) not in digests


@pytest.mark.parametrize("place", ["comparison.csv", "figures", "profile", "runs/pdv-c1-k4-r2", "profile/part-2"])
def test_a_demo_replaces_nothing_that_it_did_not_make(place: str, tmp_path: Path) -> None:
    backend, mine = SimulatedLaboratory(), tmp_path / place
    if "profile" in place:
        synthetic.profile().save(mine)
    elif "." in place:
        mine.write_text("mine")
    else:
        mine.mkdir(parents=True)
        (mine / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"out = .*not written by"):
        Demo(Experiment.from_dict(GRID), tmp_path, backend).run()
    assert backend.served == []
    assert sorted(tmp_path.rglob("*")) == before


def test_hidden_folders_are_no_runs_and_a_damaged_run_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", ".b.unfinished"):
        synthetic.simulated(name=name).save(tmp_path / name)
    assert [run.name for run in load_runs("live", tmp_path)] == ["a", "b"]
    (tmp_path / "b" / "spans.parquet").write_bytes(b"not a table")
    with pytest.raises(InputError, match=rf"run = '{tmp_path}/b/spans.parquet': missing or damaged"):
        load_runs("live", tmp_path)
