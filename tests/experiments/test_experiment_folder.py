"""The folder of an experiment: nobody else's files are harmed, and only finished records count."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InputError
from engines.record.run import Run
from experiments.runner.cells import keep, kept, load_runs
from experiments.runner.folder import load_experiment
from tests.experiments import synthetic
from tests.experiments.live_backend import Backend, perform


@pytest.mark.parametrize(
    "place", ["comparison.csv", "cells.csv", "figures", "profile", "live/pdv-c1-k4-r2", "experiment.toml"]
)
def test_nothing_is_replaced_that_no_experiment_made(place: str, tmp_path: Path) -> None:
    backend, mine = Backend(), tmp_path / place
    if place == "profile":
        synthetic.profile().save(mine)
    elif "." in place:
        mine.write_text("mine = 1")
    else:
        mine.mkdir(parents=True)
        (mine / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"out = .*was not written by an experiment"):
        perform(tmp_path, backend)
    assert backend.served == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_record_of_the_users_in_the_place_of_a_cell_stays(tmp_path: Path) -> None:
    perform(tmp_path, only="live", repeats=1, concurrencies=[1])
    mine = tmp_path / "simulated" / "pdv-c3-k4-r1"
    synthetic.simulated(name="mine").save(mine)
    backend = Backend()
    with pytest.raises(InputError, match=r"pdv-c3-k4-r1'.*not written by this command; move it"):
        perform(tmp_path, backend)
    assert (Run.load(mine).name, backend.served) == ("mine", [])


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


def test_hidden_folders_are_no_runs_and_a_damaged_run_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", ".b.unfinished"):
        synthetic.simulated(name=name).save(tmp_path / name)
    assert [run.name for run in load_runs("live", tmp_path)] == ["a", "b"]
    (tmp_path / "b" / "spans.parquet").write_bytes(b"not a table")
    with pytest.raises(InputError, match=rf"run = '{tmp_path}/b/spans.parquet': missing or damaged"):
        load_runs("live", tmp_path)


def test_a_few_of_many_cells_are_named() -> None:
    fidelity = Path(__file__).parents[2] / "results" / "h100" / "fidelity"
    with pytest.raises(InputError, match=r"has PD 4-64-c8-k4, .*, and 21 more$"):
        load_experiment(fidelity, only="x*")
