"""How many replicas of an engine there are, and which of them gets a request."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engines.errors import InputError, require_whole
from engines.policy.architecture import MOST_DEVICES, Architecture
from engines.policy.request import Request

Route = Callable[[Request, Sequence[int]], int]
"""Given a request and how many requests each replica has now, returns the number of the replica that gets it."""


def round_robin(replicas: int) -> Route:
    """Each replica in turn."""
    turns = itertools.cycle(range(replicas))
    return lambda request, here: next(turns)


def least_loaded(replicas: int) -> Route:
    """The replica with the fewest requests, waiting or running; the first of several."""
    return lambda request, here: here.index(min(here))


ROUTERS: Mapping[str, Callable[[int], Route]] = {"round-robin": round_robin, "least-loaded": least_loaded}


@dataclass(frozen=True)
class Fleet:
    """A number of replicas, and the router before them (a name in ROUTERS). Raises InputError.

    Each replica has its own scheduler, slots, queues and devices. The router gives each request to a replica when it
    arrives, and never moves it.
    """

    replicas: int = 1
    router: str = "round-robin"

    def __post_init__(self) -> None:
        require_whole("replicas", self.replicas, 1, MOST_DEVICES)
        if self.router not in ROUTERS:
            raise InputError("router", self.router, f"use {', '.join(ROUTERS)}")

    def route(self) -> Route:
        """Return the router, which starts anew."""
        return ROUTERS[self.router](self.replicas)

    def check(self, architecture: Architecture) -> None:
        """Raise InputError if all replicas together have too many devices."""
        most = MOST_DEVICES // (architecture.devices[-1] + 1)
        if self.replicas > most:
            raise InputError("replicas", self.replicas, f"use {most} or fewer; a fleet has {MOST_DEVICES} devices")

    def describe(self) -> dict[str, Any]:
        """Return plain values for run.toml; none for a single replica, which needs no router."""
        return {} if self.replicas == 1 else {"replicas": self.replicas, "router": self.router}


ALONE = Fleet()
"""A single engine."""
