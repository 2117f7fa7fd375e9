"""pdv search: the best architecture and settings for a load and an SLO."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from engines.errors import require_at_least
from experiments.commands.arguments import config_argument
from experiments.compare.report import results_console
from experiments.program.outputs import check_output
from experiments.program.provenance import this_command
from experiments.search.config import CONFIGS, Search
from experiments.search.report import candidates_report, notes, rejections
from experiments.search.search import CANDIDATES, run_search
from experiments.sweep.store import FIGURES, ROWS
from experiments.sweep.workers import Backend


def search(
    config: Annotated[str, config_argument(CONFIGS)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables.")],
    profile: Annotated[
        Path | None,
        typer.Option("--profile", "-p", help="Simulate from this profile instead of the configuration's."),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Candidates to try, instead of the configuration's.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Parallel simulations \\[default: one per core].")
    ] = None,
    backend: Annotated[
        Backend, typer.Option(help="Run simulations in processes on this machine or on a Ray cluster.")
    ] = Backend.PROCESSES,
    figures: Annotated[bool, typer.Option("--figures", help="Also draw the Pareto front, into OUT/figures.")] = False,
) -> None:
    """Find the best architecture, batch limits, k and permits for a load and an SLO, by simulation.

    With rates, the objective is the highest rate that meets the SLO. With a concurrency, it is the throughput. The
    best candidates are simulated again with other seeds. Finished simulations are kept: interrupt or kill the command
    and run it again to resume. Needs Optuna: pip install 'pdv\\[search]'.

    Example: pdv search capacity --out results/capacity --figures
    """
    for name, value in (("trials", trials), ("jobs", jobs)):
        if value is not None:
            require_at_least(name, value, 1)
    given = {"profile": None if profile is None else str(profile.resolve()), "trials": trials}
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    chosen = Search.load(config, **overrides)
    check_output("out", out)
    started = time.monotonic()
    found = run_search(chosen, out, jobs=jobs, backend=backend, command=this_command())
    results_console().print(candidates_report(chosen, found.candidates))
    for line in (*rejections(found.candidates), *notes(chosen, found.candidates)):
        print(line)
    print(f"{len(found.candidates)} candidates in {out / CANDIDATES}, {len(found.rows)} rows in {out / ROWS}; "
          f"{found.simulations} simulations in {time.monotonic() - started:.0f} s")  # fmt: skip
    if figures:
        from experiments.search.figures import draw_front  # seaborn takes a second to import

        for path in draw_front(chosen, found.candidates, out / FIGURES):
            print(path)
    if not (found.candidates["status"] == "chosen").any():
        typer.echo("pdv: no candidate meets the SLO", err=True)
        raise typer.Exit(1)
