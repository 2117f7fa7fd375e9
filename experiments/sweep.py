"""A grid of simulations, in parallel and resumable."""

from __future__ import annotations

import os
from pathlib import Path

from joblib import Parallel, delayed

from engines.run import Run
from experiments.cells import fingerprint, keep, kept
from experiments.config import Experiment, Point
from experiments.predict import Prediction, check, predict
from experiments.progress import Report


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

    jobs: processes, by default one a core. Raises InputError, and whatever a simulation raises.
    """
    points = list(experiment.points())
    for point in points:
        check(point.workload, settings)
    folder.mkdir(parents=True, exist_ok=True)
    settings.costs()  # fitted here once, and not again in every process
    digests = [fingerprint({**settings.describe(), **point.describe()}) for point in points]
    found = [kept(folder / point.name, digest) for point, digest in zip(points, digests, strict=True)]
    missing = [i for i, run in enumerate(found) if run is None]
    done = len(points) - len(missing)
    if progress is not None:
        progress(done, len(points))
    work = Parallel(n_jobs=min(jobs or os.cpu_count() or 1, max(len(missing), 1)), return_as="generator_unordered")
    for index, run in work(delayed(_cell)(i, points[i], settings) for i in missing):
        found[index] = keep(run, folder / points[index].name, digests[index])
        done += 1
        if progress is not None:
            progress(done, len(points))
    return [run for run in found if run is not None]


def _cell(index: int, point: Point, settings: Prediction) -> tuple[int, Run]:
    return index, predict(point.architecture, point.workload, settings)
