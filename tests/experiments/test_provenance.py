"""Results say which calls made them."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from engines.record.run import Run
from experiments.cli import main
from experiments.compare.fidelity import Fidelity, fidelity, fidelity_path
from experiments.program import provenance
from experiments.program.provenance import PROVENANCE, calls, git_commit, note_call
from tests.experiments import synthetic


def test_every_different_call_is_noted_once(tmp_path: Path) -> None:
    for command in ("pdv sweep a", "pdv sweep a", "pdv sweep a --jobs 2"):
        note_call(tmp_path, command)
    first, second = calls(tmp_path)
    assert (first["command"], second["command"]) == ("pdv sweep a", "pdv sweep a --jobs 2")
    assert first["versions"]["numpy"]
    assert first["date"].endswith("+00:00")


def test_an_unreadable_file_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / PROVENANCE).write_text("calls = [1,")
    assert calls(tmp_path) == []
    note_call(tmp_path, "pdv sweep a")
    assert len(calls(tmp_path)) == 1


def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert git_commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit() == head
    note_call(tmp_path / "out", "pdv")
    assert calls(tmp_path / "out")[0]["commit"] == head


def test_experiments_note_their_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.profile().save(tmp_path / "profile")
    (tmp_path / "mine.toml").write_text(
        'mode = "simulated"\nprofile = "profile"\narchitectures = ["pd"]\nconcurrencies = [2]\n'
        '[workload]\nrequests = 4\nprompt_tokens = "16"\noutput_tokens = "8"\n'
    )
    options = ["experiment", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"), "--jobs", "1"]
    monkeypatch.setattr("sys.argv", ["anything", *options])
    assert main(options) == 0
    (call,) = calls(tmp_path / "out")
    assert call["command"] == shlex.join(["pdv", *options])


def test_errors_by_mode_are_read_as_they_were_saved(tmp_path: Path) -> None:
    predicted = synthetic.simulated("pdv", name="predicted")
    found = fidelity([synthetic.as_live(predicted, 1.1)], [predicted])
    path = found.save(fidelity_path(tmp_path / "comparison.csv"))
    assert path.name == "comparison_fidelity.csv"
    table = pd.read_csv(path, dtype={"draft_length": str})
    pd.testing.assert_frame_equal(Fidelity.of_table(table).totals(), found.totals(), rtol=1e-4)
    assert found.totals()["mean"].iloc[0] == pytest.approx(0.1)


def test_a_record_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.profile().save(tmp_path / "profile")
    command = ["simulate", "-p", str(tmp_path / "profile"), "-n", "4", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["pdv", *command])
    monkeypatch.setattr(provenance, "git_commit", lambda: "0123abc")
    assert main(command) == 0
    info = Run.load(tmp_path / "run").info
    assert (info["command"], info["commit"]) == (" ".join(["pdv", *command]), "0123abc")
