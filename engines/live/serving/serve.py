"""Serve a workload with a live engine and keep the record."""

from __future__ import annotations

import datetime
import heapq
import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from engines.live.model.verification import request_key
from engines.live.serving.engine import Handle, LiveEngine
from engines.live.serving.tape import RIGHT, UNKNOWN, WRONG
from engines.live.serving.utilisation import Sampler, nvml_reader, utilisation
from engines.policy.request import Request, Status
from engines.record.roofline import Ceilings
from engines.record.run import Run
from engines.workload.workload import Workload

Progress = Callable[[int, int], None]  # requests done, requests in all


class _Clients:
    """Submit a workload's requests when they are due. Used under the engine's lock."""

    def __init__(self, engine: LiveEngine, workload: Workload) -> None:
        self.engine, self.workload = engine, workload
        self.handles: list[Handle] = []
        self.done = 0
        self._submitting = False  # a request that is refused ends inside its own submission
        self._due: list[tuple[float, int]] = []  # (time, index in the workload)
        closed = workload.concurrency
        self._next = len(workload.requests) if closed is None else min(closed, len(workload.requests))
        for index in range(self._next):
            arrival = workload.requests[index].arrival_s if closed is None else 0.0
            heapq.heappush(self._due, (arrival or 0.0, index))

    def submit_due(self) -> float | None:
        """Submit what is due; returns the seconds until the next request is, None if none is planned."""
        while self._due:
            wait_s = self._due[0][0] - self.engine.now()
            if wait_s > 0:
                return wait_s
            request = self.workload.requests[heapq.heappop(self._due)[1]]
            self._submitting = True
            self.handles.append(self.engine.submit(request))
            self._submitting = False
        return None

    def ended(self, handle: Handle) -> None:
        """A request is done; in a closed loop its client goes on to the next."""
        self.done += 1
        if self.workload.concurrency is None or self._next >= len(self.workload.requests):
            return
        index, self._next = self._next, self._next + 1
        think_s = self.workload.think_s[index] if self.workload.think_s else 0.0
        heapq.heappush(self._due, (self.engine.now() + think_s, index))
        if think_s == 0 and not self._submitting:
            self.submit_due()


def serve(
    engine: LiveEngine,
    workload: Workload,
    progress: Progress | None = None,
    ceilings: Ceilings | None = None,
    *,
    on_end: Callable[[Handle], None] = lambda handle: None,
    complete_tapes: bool = True,
) -> Run:
    """Serve every request of the workload and return the record, tapes and utilisation included.

    ceilings: what the device reaches (engines.live.serving.utilisation.measure_ceilings), to set achieved rates
    against. on_end: called, under the engine's lock, with the handle of every request that is done. complete_tapes:
    ask the draft model, once all is served, about last tokens that were never drafted. Raises RuntimeError if the
    engine breaks; KeyboardInterrupt passes through (close the engine then).
    """
    total = len(workload.requests)
    sampler = Sampler(nvml_reader(engine.pair.device))
    with sampler, engine.lock:
        clients: _Clients

        def ended(handle: Handle) -> None:
            on_end(handle)
            clients.ended(handle)

        recorder = engine.record(on_end=ended)
        clients = _Clients(engine, workload)
        while clients.done < total and engine.crash is None:
            wait_s = clients.submit_due()
            if clients.done < total:
                engine.news.wait(min(wait_s, 1.0) if wait_s is not None else 1.0)
            if progress is not None:
                progress(clients.done, total)
        if engine.crash is not None:
            raise RuntimeError("the engine failed") from engine.crash
        engine.record()
    run = recorder.run(describe(engine, workload), _tapes(engine, clients.handles, complete_tapes))
    run.info["utilisation"] = utilisation(run, engine.pair, sampler.summary(), ceilings)
    return run


def describe(engine: LiveEngine, workload: Workload) -> dict[str, Any]:
    """What run.toml says of a live run."""
    pair = engine.pair
    return {
        "kind": "live",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(pair.device),
        "pair": pair.name,
        "pair_models": pair.origins.describe(),
        "dtype": str(pair.dtype).removeprefix("torch."),
        "max_context": engine.max_context,
        "architecture": engine.architecture.to_dict(),
        "workload": {
            **workload.info,
            **({"concurrency": workload.concurrency} if workload.concurrency is not None else {}),
        },
        "versions": {name: version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
    }


def device_name(device: torch.device) -> str:
    """The device as a reader of a figure would call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})"


def _tapes(engine: LiveEngine, handles: list[Handle], complete: bool) -> dict[int, np.ndarray]:
    """The tapes of the finished requests. Where the last output token was never drafted, ask the draft model."""
    tapes = {}
    with torch.inference_mode():
        for handle in handles:
            if handle.tape is None or handle.state is None or handle.state.status is not Status.FINISHED:
                continue
            if complete and len(handle.tape) > 1 and handle.tape[-1] == UNKNOWN:
                handle.tape[-1] = RIGHT if _draft_agrees(engine, handle.request, handle.tokens) else WRONG
            tapes[handle.request.id] = handle.tape
    return tapes


def _draft_agrees(engine: LiveEngine, request: Request, tokens: list[int]) -> bool:
    key = request_key(request.seed, request.id)
    return engine.stages.draft_agrees_on_last([*(request.prompt or ()), *tokens], key, request.temperature)
