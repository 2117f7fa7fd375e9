"""Spread simulations over processes, or over a Ray cluster."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from enum import StrEnum
from typing import Any

from joblib import Parallel, delayed

from engines.errors import InputError
from experiments.program.processes import WorkerLostError, end_with, silence_trackers
from experiments.runner.cells import fingerprint
from experiments.runner.predict import Prediction, program
from experiments.sweep.simulation import Row, Simulation, rows_of

BATCH_S = 1.0
"""How long a worker should take for the simulations that it is given at once, seconds."""
LOST = "a worker process was killed; run this again to resume, with fewer jobs if memory was short"

_known: dict[str, Prediction] = {}


class Backend(StrEnum):
    """Where simulations run."""

    PROCESSES = "processes"
    RAY = "ray"


class Batches:
    """Simulations in batches that take a worker about BATCH_S seconds, as far as finished ones tell."""

    def __init__(self, simulations: Iterable[Simulation]) -> None:
        self._simulations = iter(simulations)
        self._work = self._seconds = 0.0

    def finished(self, work: float, seconds: float) -> None:
        """Learn from a batch that took a worker this long."""
        self._work += work
        self._seconds += seconds

    def __iter__(self) -> Iterator[list[Simulation]]:
        batch: list[Simulation] = []
        for simulation in self._simulations:
            batch.append(simulation)
            expected_s = sum(each.work for each in batch) * self._seconds / self._work if self._work else BATCH_S
            if expected_s >= BATCH_S:
                yield batch
                batch = []
        if batch:
            yield batch


Result = tuple[list[Row], float]
"""Rows, and the work that is done with them."""


def results(
    simulations: Sequence[Simulation], settings: Prediction, jobs: int | None = None, backend: str = "processes"
) -> Generator[Result, None, None]:
    """Yield rows in order of completion. Memory does not grow with the number of simulations.

    jobs: number of processes, one per core by default; with Ray, of simulations at once, one per CPU of the cluster
    by default. Raises WorkerLostError if a worker is killed, and InputError if Ray is not installed or its nodes have
    another version of the project.
    """
    batches = Batches(simulations)
    settings.costs()  # fit once here, not in every process
    spread = _on_ray if backend == Backend.RAY else _on_processes
    for rows, work, seconds in spread(batches, settings, jobs, len(simulations)):
        batches.finished(work, seconds)
        yield rows, work


def _batch(batch: Sequence[Simulation], key: str, settings: Prediction) -> tuple[list[Row], float, float]:
    """Simulate a batch in a worker, whose fitted costs are kept from batch to batch."""
    started = time.perf_counter()
    settings = _known.setdefault(key, settings)
    rows = [row for simulation in batch for row in rows_of(simulation, settings)]
    return rows, sum(simulation.work for simulation in batch), time.perf_counter() - started


def _on_processes(
    batches: Iterable[list[Simulation]], settings: Prediction, jobs: int | None, count: int
) -> Iterator[tuple[list[Row], float, float]]:
    processes = min(jobs or os.cpu_count() or 1, max(count, 1))
    together = {"initializer": end_with, "initargs": (os.getpid(),)} if processes > 1 else {}
    silence_trackers()
    key = _key(settings)
    work = Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1, **together)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="joblib")  # about abandoned work
            yield from work(delayed(_batch)(batch, key, settings) for batch in batches)
    except BrokenProcessPool as error:
        raise WorkerLostError(LOST) from error


def _on_ray(
    batches: Iterable[list[Simulation]], settings: Prediction, jobs: int | None, count: int
) -> Iterator[tuple[list[Row], float, float]]:
    try:
        import ray
    except ImportError as error:
        remedy = "Ray is not installed; install the extra: pip install 'pdv[ray]'"
        raise InputError("backend", Backend.RAY, remedy) from error
    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, logging_level="error")  # the running cluster, or one on this machine
    try:
        key, shared, version = _key(settings), ray.put(settings), program()
        slots = min(jobs or int(ray.cluster_resources().get("CPU", 1)), max(count, 1))
        remote = ray.remote(num_cpus=1, max_retries=2)(_on_node)
        waiting: list[Any] = []
        for batch in batches:
            waiting.append(remote.remote(batch, key, shared, version))
            while len(waiting) >= 2 * slots:  # one runs and one waits, as with processes
                done, waiting = ray.wait(waiting)
                yield from ray.get(done)
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(cause := error.cause, InputError):
            raise InputError(cause.field, cause.value, cause.remedy) from error
        raise
    except ray.exceptions.WorkerCrashedError as error:
        raise WorkerLostError(LOST) from error
    finally:
        if own:
            ray.shutdown()


def _on_node(
    batch: Sequence[Simulation], key: str, settings: Prediction, version: str
) -> tuple[list[Row], float, float]:
    if program() != version:
        remedy = "a node of the cluster has another version of pdv; install the same on all nodes"
        raise InputError("backend", Backend.RAY, remedy)
    return _batch(batch, key, settings)


def _key(settings: Prediction) -> str:
    """Return a digest of what all simulations share, apart from the acceptance, which each has of its own."""
    return fingerprint({**settings.describe(), "acceptance": None, "seed": None})
