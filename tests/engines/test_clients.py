"""When the clients of a workload submit their requests, on a clock that the test sets."""

from __future__ import annotations

from engines.policy.request import Request
from engines.workload.clients import Clients
from engines.workload.workload import Workload


def requests(*arrivals: float | None) -> tuple[Request, ...]:
    return tuple(Request(i, 4, 4, arrival) for i, arrival in enumerate(arrivals))


def test_an_open_loop_submits_at_the_arrivals() -> None:
    sent: list[int] = []
    clients = Clients(Workload(requests(0.0, 0.5, 2.0)), lambda request: sent.append(request.id))
    assert clients.submit_due(0.0) == 0.5
    assert clients.ended(0.1) is None  # nobody waits for it
    assert clients.submit_due(0.6) == 2.0
    assert sent == [0, 1]
    assert clients.submit_due(2.0) is None
    assert (sent, clients.done, clients.total) == ([0, 1, 2], 1, 3)


def test_a_client_thinks_before_its_next_request() -> None:
    sent: list[int] = []
    workload = Workload(requests(*[None] * 5), concurrency=2, think_s=(0.0, 0.0, 3.0, 0.5, 0.0))
    clients = Clients(workload, lambda request: sent.append(request.id))
    assert clients.submit_due(0.0) is None
    assert clients.ended(1.0) == 3.0  # its client goes on to request 2
    assert clients.ended(2.0) == 0.5  # and this one to request 3
    assert clients.submit_due(2.4) == 2.5
    assert clients.submit_due(2.5) == 4.0
    assert clients.submit_due(4.0) is None
    assert sent == [0, 1, 3, 2]
    assert clients.ended(4.2) == 0.0  # request 4 needs no thinking
    assert clients.submit_due(4.2) is None
    assert sent == [0, 1, 3, 2, 4]
    assert clients.ended(5.0) is None  # no request is left


def test_the_client_of_a_refused_request_goes_on_after_what_was_due_before() -> None:
    sent: list[int] = []

    def submit(request: Request) -> None:
        sent.append(request.id)
        if request.id == 0:  # refused within its own submission
            assert clients.ended(0.0) == 0.0
            assert clients.submit_due(0.0) is None

    clients = Clients(Workload(requests(*[None] * 4), concurrency=2), submit)
    assert clients.submit_due(0.0) is None
    assert sent == [0, 1, 2]
    assert clients.done == 1
