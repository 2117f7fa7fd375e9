"""pdv demo: the whole loop once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from experiments.compare.report import comparison_report, results_console
from experiments.program.outputs import check_output
from experiments.runner.config import Experiment
from experiments.runner.preflight import check_live


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything.")] = Path("results/demo"),
    config: Annotated[
        str, typer.Option(help="Experiment in TOML, or `demo` or `quick`, which are shipped.")
    ] = "demo",
    quick: Annotated[bool, typer.Option("--quick", help="A small grid, to see the steps: --config quick.")] = False,
) -> None:
    """Do everything once: serve three architectures live, calibrate, simulate the same, compare and draw.

    Minutes on two CPU cores. What is finished is kept in the folder: interrupt it and call it again to go on.

    Example: pdv demo --out results/demo
    """
    experiment = Experiment.load("quick" if quick else config)
    check_output("out", out)
    check_live(experiment.device, experiment.pair)

    from experiments.runner.demo import Demo, PairBackend

    started = time.monotonic()
    results = Demo(experiment, out, PairBackend(experiment)).run()
    results_console().print(comparison_report(results.comparison))
    places = {
        "live runs": f"{out / 'runs'} ({len(results.lives)})",
        "profile": out / "profile",
        "simulated runs": f"{out / 'simulated'} ({len(results.simulations)})",
        "comparison": f"{out / 'comparison.csv'}, {out / 'comparison.txt'}",
        "figures": f"{out / 'figures'} ({len(results.figures)} files)",
        "traces for ui.perfetto.dev": out / "traces",
    }
    for name, place in places.items():
        print(f"{name}: {place}")
    print(f"took {time.monotonic() - started:.0f} s")
