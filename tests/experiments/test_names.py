"""Names of architectures, devices and runs are shown as they are, whatever they look like to a library."""

from __future__ import annotations

import io
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console
from rich.text import Text

from experiments.compare.compare import compare
from experiments.compare.report import grid_table, print_summary, results_console, write_report
from experiments.figures.timeline import timeline
from experiments.program import progress
from tests.experiments import synthetic


@pytest.mark.parametrize("name", ["[/x]", "[red]pdv[/red]", ":smile:"])
def test_reports_take_no_name_for_markup(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [synthetic.live(), synthetic.simulated()]
    for run in runs:
        run.info["architecture"] = {**run.info["architecture"], "name": name}
    assert name in write_report(compare(runs[:1], runs[1:]), tmp_path / "report.txt").read_text()
    print_summary(runs[0], tmp_path)
    results_console().print(grid_table(runs))
    assert capsys.readouterr().out.count(name) == 3


@pytest.mark.parametrize("name", ["[/x]", "[red]pdv[/red]", ":smile:"])
def test_progress_bars_take_no_title_for_markup(name: str) -> None:
    file = io.StringIO()
    terminal = Console(**progress.AS_IT_IS, file=file, force_terminal=True, width=100)
    with mock.patch.object(progress, "console", terminal), progress.bar(name) as bar:
        bar.part(name, 0.5)
    assert f"{name}: {name}" in Text.from_ansi(file.getvalue()).plain


def test_figures_take_no_name_for_a_formula(tmp_path: Path) -> None:
    live = synthetic.live("pd", name=r"$\bad{$")
    live.info["device"] = r"$\bad{$"
    paths = timeline([live], tmp_path)
    assert all(path.stat().st_size > 5000 for path in paths)
