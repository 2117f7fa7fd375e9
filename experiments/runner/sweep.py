"""A grid of simulations, in parallel and resumable."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path

from joblib import Parallel, delayed

from engines.record.run import Run
from engines.storage.locks import locked
from experiments.program.processes import WorkerLostError, end_with, silence_trackers
from experiments.program.progress import Report
from experiments.runner.cells import cell_folder, fingerprint, keep, kept
from experiments.runner.config import Experiment, Point
from experiments.runner.predict import Prediction, check, predict


def sweep(
    experiment: Experiment,
    settings: Prediction,
    folder: Path,
    *,
    jobs: int | None = None,
    progress: Report | None = None,
) -> list[Run]:
    """Simulate every cell; its record is kept in folder/NAME. Cells that are there already, made with the same
    settings, are read and not simulated again.

    jobs: processes, by default one a core. Raises InputError, before any work, if another process writes there or if
    a cell's folder was not made by a sweep; WorkerLostError if a process is killed; and whatever a simulation raises.
    What is finished by then stays.
    """
    points = list(experiment.points())
    for point in points:
        check(point.architecture, point.workload, settings)
    folders = [cell_folder(folder, point.name) for point in points]
    with locked(folder):
        settings.costs()  # fitted here once, and not again in every process
        digests = [fingerprint({**settings.describe(), **point.describe()}) for point in points]
        found = {i: run for i in range(len(points)) if (run := kept(folders[i], digests[i])) is not None}
        missing = [i for i in range(len(points)) if i not in found]
        if progress is not None:
            progress(len(found), len(points))
        runs = _simulated([(i, points[i]) for i in missing], settings, jobs or os.cpu_count() or 1)
        with closing(runs):
            for index, run in runs:
                found[index] = keep(run, folders[index], digests[index])
                if progress is not None:
                    progress(len(found), len(points))
    return [found[i] for i in range(len(points))]


def _simulated(
    cells: list[tuple[int, Point]], settings: Prediction, jobs: int
) -> Generator[tuple[int, Run], None, None]:
    """The runs as they are finished, each with the index that its cell came with. Raises WorkerLostError."""
    processes = min(jobs, max(len(cells), 1))
    together = {"initializer": end_with, "initargs": (os.getpid(),)} if processes > 1 else {}
    silence_trackers()
    work = Parallel(n_jobs=processes, return_as="generator_unordered", **together)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="joblib")  # about work that is given up
            yield from work(delayed(_cell)(index, point, settings) for index, point in cells)
    except BrokenProcessPool as error:
        remedy = "run this again to go on, with fewer jobs if it was for want of memory"
        raise WorkerLostError(f"a worker process was killed; {remedy}") from error


def _cell(index: int, point: Point, settings: Prediction) -> tuple[int, Run]:
    return index, predict(point.architecture, point.workload, settings)
