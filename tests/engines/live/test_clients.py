"""When the clients of a workload submit their requests, on a clock that the test sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("torch")

from engines.live.serving.serve import _Clients
from engines.policy.request import Request
from engines.workload.workload import Workload


@dataclass
class Desk:
    """Stands in for an engine: takes requests and tells the time."""

    time_s: float = 0.0
    taken: list[tuple[float, int]] = field(default_factory=list)

    def now(self) -> float:
        return self.time_s

    def submit(self, request: Request) -> Any:
        self.taken.append((self.time_s, request.id))
        return request


def requests(*arrivals: float | None) -> tuple[Request, ...]:
    return tuple(Request(i, 4, 4, arrival) for i, arrival in enumerate(arrivals))


def at(desk: Desk, clients: _Clients, time_s: float) -> float | None:
    desk.time_s = time_s
    return clients.submit_due()


def test_an_open_loop_submits_at_the_arrivals() -> None:
    desk = Desk()
    clients = _Clients(desk, Workload(requests(0.0, 0.5, 2.0)))  # type: ignore[arg-type]
    assert at(desk, clients, 0.0) == pytest.approx(0.5)
    clients.ended(clients.handles[0])  # nobody waits for it
    assert at(desk, clients, 0.6) == pytest.approx(1.4)
    assert at(desk, clients, 2.0) is None
    assert desk.taken == [(0.0, 0), (0.6, 1), (2.0, 2)]


def test_a_client_thinks_before_its_next_request() -> None:
    desk = Desk()
    think_s = (0.0, 0.0, 3.0, 0.5, 0.0)
    clients = _Clients(desk, Workload(requests(*[None] * 5), concurrency=2, think_s=think_s))  # type: ignore[arg-type]
    assert at(desk, clients, 0.0) is None
    desk.time_s = 1.0
    clients.ended(clients.handles[1])  # its client goes on to request 2, after 3 s
    assert clients.submit_due() == pytest.approx(3.0)
    desk.time_s = 2.0
    clients.ended(clients.handles[0])  # and this one to request 3, after half a second
    assert clients.submit_due() == pytest.approx(0.5)
    assert at(desk, clients, 2.5) == pytest.approx(1.5)
    assert at(desk, clients, 4.0) is None
    assert desk.taken == [(0.0, 0), (0.0, 1), (2.5, 3), (4.0, 2)]
    clients.ended(clients.handles[2])  # request 4 needs no thinking: it is sent within the end of the one before
    assert desk.taken[-1] == (4.0, 4)
    clients.ended(clients.handles[3])  # no request is left
    assert clients.submit_due() is None
    assert clients.done == 4
