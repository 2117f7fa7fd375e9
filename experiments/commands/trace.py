"""pdv trace: export a run as a Chrome trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engines.record.run import Run
from experiments.figures.perfetto import export
from experiments.program.outputs import check_file
from experiments.runner.folder import check_apart


def trace(
    run: Annotated[Path, typer.Argument(help="Folder of a live or simulated run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file \\[default: RUN/trace.json].")] = None,
) -> None:
    """Export a run as a Chrome trace: lanes, requests, and counters of waiting and active requests.

    Open the file at ui.perfetto.dev or in chrome://tracing.

    Example: pdv trace runs/pdv-c5 --out pdv-c5.json
    """
    path = out or run / "trace.json"
    check_file("out", path)
    check_apart("out", path)
    print(f"trace: {export(Run.load(run), path)}")
