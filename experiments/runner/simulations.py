"""Many simulations at once, in worker processes."""

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
    """One simulation. live: the run whose tape and context it takes, if there is one."""

    architecture: Architecture
    workload: Workload
    seed: int
    live: Run | None = None

    def described(self) -> dict[str, Any]:
        """All that decides the simulation besides the prediction's settings, as plain values."""
        live = identity(self.live) if self.live is not None else None
        return {**described(self.architecture, self.workload), "seed": self.seed, "live": live}


def simulated(
    tasks: Sequence[Task], settings: Prediction, jobs: int | None = None
) -> Generator[tuple[int, Run | str], None, None]:
    """Each task's index with its run, or with what was wrong with its input, as they are finished.

    jobs: processes, one per core by default. Raises WorkerLostError if a process is killed, and whatever else a
    simulation raises.
    """
    processes = min(jobs or os.cpu_count() or 1, max(len(tasks), 1))
    together = {"initializer": end_with, "initargs": (os.getpid(),)} if processes > 1 else {}
    settings.costs()  # fitted once, and not again in every process
    silence_trackers()
    work = Parallel(n_jobs=processes, return_as="generator_unordered", **together)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="joblib")  # about work that is given up
            yield from work(delayed(_simulated)(index, task, settings) for index, task in enumerate(tasks))
    except BrokenProcessPool as error:
        remedy = "run this again to go on, with fewer jobs if memory was short"
        raise WorkerLostError(f"a worker process was killed; {remedy}") from error


def _simulated(index: int, task: Task, settings: Prediction) -> tuple[int, Run | str]:
    try:
        return index, predict(task.architecture, task.workload, settings.with_seed(task.seed), live=task.live)
    except InputError as error:
        return index, str(error)
