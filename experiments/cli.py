"""The `pdv` command line."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from itertools import pairwise

import typer

from engines.errors import InputError
from experiments.commands.bench import bench
from experiments.commands.calibrate import calibrate
from experiments.commands.check import check
from experiments.commands.compare import compare
from experiments.commands.experiment import demo, experiment
from experiments.commands.figures import figures
from experiments.commands.map import map_
from experiments.commands.profile_kernels import profile_kernels
from experiments.commands.report import report
from experiments.commands.run import run
from experiments.commands.search import search
from experiments.commands.simulate import simulate
from experiments.commands.sweep import sweep
from experiments.commands.trace import trace
from experiments.commands.train_pair import train_pair
from experiments.program.ending import ended_by


def _joined(text: str) -> str:
    """Join the lines of each paragraph, since rich would keep the line breaks."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))


app = typer.Typer(
    name="pdv",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=_joined("""Compare layouts of speculative decoding, live and in simulation.

    [bold]run[/bold] serves a workload live, [bold]calibrate[/bold] measures the device, [bold]simulate[/bold]
    predicts the same workload, [bold]compare[/bold] shows the errors and [bold]figures[/bold] draws both sides.
    [bold]experiment[/bold] does all of this for a grid of cells, and [bold]demo[/bold] for a small one.
    [bold]sweep[/bold] simulates many cells, [bold]search[/bold] finds the best settings for a load and an SLO, and
    [bold]report[/bold] writes results as one HTML page. Times are in seconds, lengths in tokens and rates in requests
    per second, unless stated otherwise.
    """),
)
for command in (run, calibrate, simulate, compare, figures, trace, report, experiment, sweep, search, bench, demo):
    app.command()(command)
app.command("map")(map_)
app.add_typer(check)
app.command()(profile_kernels)
app.command()(train_pair)
for info in (*app.registered_commands, *check.registered_commands):
    info.help = _joined(info.callback.__doc__ or "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    The code is 1 if a comparison exceeds its tolerance, otherwise that of experiments.program.ending.ended_by.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> object:
        _refuse_empty(given)
        return app(given or ["--help"], prog_name="pdv", standalone_mode=False)

    return ended_by(work, "pdv")


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raise InputError for an empty value, since as a path it would mean the current folder."""
    for before, argument in pairwise(["", *arguments]):
        name, equals, value = argument.partition("=")
        if not argument or (name.startswith("--") and equals and not value):
            raise InputError((before if not argument else name).lstrip("-") or "argument", "", "give a value")


if __name__ == "__main__":
    sys.exit(main())
