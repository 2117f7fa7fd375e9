"""The `pdv` command line."""

from __future__ import annotations

import gc
import inspect
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise

import typer

from engines.errors import InputError
from experiments.program.ending import ended_by

COMMANDS = (
    "run", "calibrate", "simulate", "compare", "figures", "trace", "report", "experiment", "sweep", "search", "bench",
    "demo", "map", "check", "profile-kernels", "train-pair",
)  # fmt: skip
"""In the order of the help. Each is a function of its module in experiments.commands, or a group of functions."""
ELSEWHERE = {"demo": "experiment"}  # module of a command that has none of its own


def _joined(text: str) -> str:
    """Join the lines of each paragraph, since rich would keep the line breaks."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))


def app_of(names: Sequence[str]) -> typer.Typer:
    """Return `pdv` with these commands. Only their modules are imported, since all take a second."""
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
        [bold]sweep[/bold] simulates many cells, [bold]search[/bold] finds the best settings for a load and an SLO,
        and [bold]report[/bold] writes results as one HTML page. Times are in seconds, lengths in tokens and rates in
        requests per second, unless stated otherwise.
        """),
    )
    app.callback()(lambda: None)  # without it, an app of one command takes no name of a command
    for name in names:
        attribute = name.replace("-", "_")
        module = import_module(f"experiments.commands.{ELSEWHERE.get(name, attribute)}")
        command = getattr(module, "map_" if name == "map" else attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command)
            infos = command.registered_commands
        else:
            app.command(name)(command)
            infos = app.registered_commands[-1:]
        for info in infos:
            info.help = _joined(info.callback.__doc__ or "")
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    The code is 1 if a comparison exceeds its tolerance, otherwise that of experiments.program.ending.ended_by.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> object:
        _refuse_empty(given)
        gc.disable()  # looking for garbage takes a tenth of the time of imports, which make none
        app = app_of(given[:1] if given and given[0] in COMMANDS else COMMANDS)
        if arguments is None:  # this process does nothing else, and keeps what it imported
            gc.freeze()
        gc.enable()
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
