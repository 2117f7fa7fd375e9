"""Workloads from the record of a run: what it served, and what its description says without looking at the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from engines.errors import InputError
from engines.policy.request import Request
from engines.record.run import Run
from engines.workload.lengths import FixedLength, Lengths, LogNormalLength, UniformLength
from engines.workload.workload import Workload, make_workload, replay


def recorded_workload(run: Run) -> Workload:
    """Return the finished requests of a live or simulated run.

    An open loop has the recorded arrivals. A closed loop has the same number of clients, which send the requests in
    the same order, each when an earlier one ends in whatever serves it, after the recorded time to think. Raises
    InputError if no request finished.
    """
    workload = replay(run)
    finished = set(run.finished["request"])
    if not finished:
        raise InputError("replay", run.name, "no request finished in this run; replay another one")
    clients = run.info.get("workload", {}).get("concurrency")
    if clients is None:
        requests = tuple(request for request in workload.requests if request.id in finished)
        return dataclasses.replace(workload, requests=requests)
    sent = sorted(workload.requests, key=lambda request: request.id)  # ids count in the order of sending
    think_s = dict(zip((request.id for request in sent), _think_s(run, sent, clients), strict=True))
    requests = tuple(dataclasses.replace(request, arrival_s=None) for request in sent if request.id in finished)
    thinking = tuple(think_s[request.id] for request in requests)
    info = {**workload.info, "count": len(requests)}
    return Workload(requests, concurrency=clients, think_s=thinking if any(thinking) else (), info=info)


def planned_workload(run: Run) -> Workload:
    """Return the workload that the description of a run's makes, as `pdv simulate` with the same options would.

    The seed is a part of the description, and so is a trace; what the run made of them is not.
    """
    made = run.info.get("workload", {})
    lengths = [_lengths(made.get(name)) for name in ("prompt_lengths", "output_lengths")]
    if made.get("kind") != "synthetic" or None in lengths:
        recorded = recorded_workload(run)
        return dataclasses.replace(recorded, info={**made, "blind": True})
    prompts, outputs = lengths
    assert prompts is not None
    assert outputs is not None
    process = made.get("process")
    workload = make_workload(
        made["count"], prompts, outputs, concurrency=made.get("concurrency"), rate=made.get("rate"), process=process,
        cv=made.get("cv") if process == "gamma" else None, rate_steps=made.get("rate_steps", ()),
        mean_think_s=made.get("mean_think_s", 0.0),
        seed=made.get("seed", 0), temperature=made.get("temperature", 0.0),
        ignore_eos=made.get("ignore_eos", True),
    )  # fmt: skip
    chosen = {name: made[name] for name in ("alpha",) if name in made}  # whose requests these are
    return dataclasses.replace(workload, info={**workload.info, **chosen, "blind": True})


def _lengths(described: Mapping[str, Any] | None) -> Lengths | None:
    """Return the lengths that `Lengths.describe` described; None for those listed in a trace, or not described."""
    kinds = {"fixed": FixedLength, "uniform": UniformLength, "lognormal": LogNormalLength}
    values = dict(described or {})
    kind = kinds.get(values.pop("kind", ""))
    return None if kind is None else kind(*values.values())


def _think_s(run: Run, sent: Sequence[Request], clients: int) -> list[float]:
    """Return the seconds between the end that released each request and its arrival; 0 for the first `clients`."""
    if not run.info["workload"].get("mean_think_s"):
        return [0.0] * len(sent)
    ends = sorted(run.requests["finish_s"])
    waits = [max(0.0, (request.arrival_s or 0.0) - end) for request, end in zip(sent[clients:], ends, strict=False)]
    return [0.0] * min(clients, len(sent)) + waits
