"""Replicas of an engine on one simulated clock, and the clients whose requests they serve."""

from __future__ import annotations

import dataclasses
import itertools
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import simpy

from engines.policy.architecture import Architecture, device_of
from engines.policy.batch import Batch
from engines.policy.captured_sizes import prefill_tokens_of
from engines.policy.request import Request
from engines.workload.clients import Clients
from engines.workload.workload import Workload
from sim.acceptance import Tapes
from sim.conditions import Conditions
from sim.cost_protocols import DIMENSIONS
from sim.replica import Bookkeeper, Process, Replica
from sim.routers import ALONE, Fleet

Progress = Callable[[int, int], None]
"""Told (requests ended, requests in all)."""


class Deployment:
    """Submit the requests of a workload to the replicas of a fleet, until all have ended.

    running: the batches of all replicas that have started and not completed, by id.
    Raises InputError as sim.engine.simulate does.
    """

    def __init__(
        self,
        architecture: Architecture,
        workload: Workload,
        conditions: Conditions,
        progress: Progress | None = None,
        fleet: Fleet = ALONE,
    ) -> None:
        fleet.check(architecture)
        if isinstance(conditions.acceptance, Tapes):
            conditions.acceptance.check(workload.requests, conditions.max_context)
        longest = max((request.prompt_tokens for request in workload.requests), default=1)
        prefill_tokens = conditions.prefill_tokens or prefill_tokens_of(architecture, longest)
        self._environment, batch_ids = simpy.Environment(), itertools.count()
        self.replicas = [
            Replica(
                self._environment, on_own_devices(architecture, number), conditions, prefill_tokens, self._goes_on,
                number, batch_ids,
            )
            for number in range(fleet.replicas)
        ]  # fmt: skip
        first, *others = [replica.running for replica in self.replicas]
        self.running: Mapping[int, Batch] = ChainMap(first, *others) if others else first
        self._route = fleet.route()
        self._progress = progress
        self._clients = Clients(workload, self._submit if others else self.replicas[0].submit)
        self._environment.process(self._arrivals())

    def run(self, bookkeepers: Sequence[Bookkeeper], tapes: dict[int, np.ndarray] | None = None) -> None:
        """Run to the end. bookkeepers: are told what happens, one per replica. tapes: gets the tapes, by request.

        Raises RuntimeError if requests are left that can never run, and AssertionError if Little's law fails for a
        replica, or if not every request has ended once.
        """
        for replica, bookkeeper in zip(self.replicas, bookkeepers, strict=True):
            replica.report_to(bookkeeper, tapes)
        self._environment.run()
        for replica in self.replicas:
            replica.check_ended()
        if self._clients.done != self._clients.total:
            raise AssertionError(f"{self._clients.done} of {self._clients.total} requests have ended")

    @property
    def segments(self) -> dict[str, int]:
        """How many segments ran, and how many of them beyond the profile (counts_of)."""
        return counts_of([replica.segments for replica in self.replicas])

    def beyond(self) -> dict[str, dict[str, int]]:
        """Return the same as plain values for run.toml, if anything can be beyond the profile."""
        return {"beyond_profile": self.segments} if self.replicas[0].extrapolates else {}

    def _submit(self, request: Request) -> None:
        number = self._route(request, [replica.population.here for replica in self.replicas])
        self.replicas[number].submit(request)

    def _arrivals(self) -> Process:
        """Submit what is due, then wait for what is planned. The clients of a closed loop do the rest."""
        due_s: float | None = 0.0
        while due_s is not None:
            yield self._environment.timeout(max(0.0, due_s - self._environment.now))
            due_s = self._clients.submit_due(due_s)

    def _think(self, think_s: float) -> Process:
        yield self._environment.timeout(think_s)
        self._clients.submit_due(self._environment.now)

    def _goes_on(self) -> None:
        """A request has ended or was rejected, so its client goes on."""
        now = self._environment.now
        think_s = self._clients.ended(now)
        if think_s == 0:
            self._clients.submit_due(now)
        elif think_s is not None:
            self._environment.process(self._think(think_s))
        if self._progress is not None:
            self._progress(self._clients.done, self._clients.total)


def counts_of(counted: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return sums of Replica.segments: `segments`, `beyond` in any dimension, and in each."""
    return {name: sum(one.get(name, 0) for one in counted) for name in ("segments", "beyond", *DIMENSIONS)}


def on_own_devices(architecture: Architecture, number: int) -> Architecture:
    """Return the architecture of a replica, on the devices that it has in a fleet."""
    devices = architecture.devices
    lanes = [dataclasses.replace(lane, device=device_of(number, lane.device, devices)) for lane in architecture.lanes]
    return architecture.replace(lanes=tuple(lanes))
