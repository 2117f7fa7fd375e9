"""Run simulations in parallel worker processes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from joblib import Parallel, delayed

from engines.errors import InputError
from engines.policy.architecture import Architecture
from engines.record.run import Run
from engines.workload.workload import Workload
from experiments.compare.identity import identity
from experiments.program.processes import WorkerLostError, end_with, silence_trackers
from experiments.runner.cells import described
from experiments.runner.predict import Prediction, predict


@dataclass(frozen=True)
class Task:
    """One simulation. live: the run whose tapes and context limit it uses, if any."""

    architecture: Architecture
    workload: Workload
    seed: int
    live: Run | None = None

    def described(self) -> dict[str, Any]:
        """Return everything that determines the simulation apart from the Prediction, as plain values."""
        live = identity(self.live) if self.live is not None else None
        return {**described(self.architecture, self.workload), "seed": self.seed, "live": live}


def simulated(
    tasks: Sequence[Task], settings: Prediction, jobs: int | None = None
) -> Generator[tuple[int, Run | str], None, None]:
    """Yield the index of each task with its run, or its input error, in order of completion.

    jobs: number of processes, one per core by default. Raises WorkerLostError if a process is killed, and any other
    error of a simulation.
    """
    processes = min(jobs or os.cpu_count() or 1, max(len(tasks), 1))
    together = {"initializer": end_with, "initargs": (os.getpid(),)} if processes > 1 else {}
    settings.costs()  # fit once here, not in every process
    silence_trackers()
    work = Parallel(n_jobs=processes, return_as="generator_unordered", **together)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="joblib")  # about abandoned work
            yield from work(delayed(_simulated)(index, task, settings) for index, task in enumerate(tasks))
    except BrokenProcessPool as error:
        remedy = "run this again to resume, with fewer jobs if memory was short"
        raise WorkerLostError(f"a worker process was killed; {remedy}") from error


def _simulated(index: int, task: Task, settings: Prediction) -> tuple[int, Run | str]:
    try:
        return index, predict(task.architecture, task.workload, settings.with_seed(task.seed), live=task.live)
    except InputError as error:
        return index, str(error)
