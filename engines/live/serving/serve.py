"""Serve a workload with a live engine and return the record."""

from __future__ import annotations

import datetime
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
from engines.policy.draft_length import DraftLength
from engines.policy.request import Request, Status
from engines.record.roofline import Ceilings
from engines.record.run import Run
from engines.workload.clients import Clients
from engines.workload.workload import Workload

Progress = Callable[[int, int], None]  # called with (done, total) requests


def serve(
    engine: LiveEngine,
    workload: Workload,
    progress: Progress | None = None,
    ceilings: Ceilings | None = None,
    *,
    on_end: Callable[[Handle], None] = lambda handle: None,
    complete_tapes: bool = True,
    draft_length: DraftLength | None = None,
) -> Run:
    """Serve all requests of a workload and return the record, with tapes and utilisation.

    ceilings: the limits of the device (engines.live.serving.utilisation.measure_ceilings), to compare achieved rates
    with. on_end: called with the handle of each request that is done, under the engine's lock. complete_tapes: after
    serving, ask the draft model about last tokens that were never drafted. draft_length: see LiveEngine.record.
    Raises RuntimeError if the engine fails. On KeyboardInterrupt, close the engine.
    """
    handles: list[Handle] = []
    clients = Clients(workload, lambda request: handles.append(engine.submit(request)))
    sampler = Sampler(nvml_reader(engine.pair.device))

    def ended(handle: Handle) -> None:
        on_end(handle)
        if clients.ended(engine.moment()) == 0:
            clients.submit_due(engine.moment())

    with sampler, engine.lock:
        recorder = engine.record(on_end=ended, draft_length=draft_length)
        while clients.done < clients.total and engine.crash is None:
            due_s = clients.submit_due(engine.now())
            if clients.done < clients.total:
                engine.news.wait(1.0 if due_s is None else min(max(0.0, due_s - engine.now()), 1.0))
            if progress is not None:
                progress(clients.done, clients.total)
        if engine.crash is not None:
            raise RuntimeError("the engine failed") from engine.crash
        engine.record()
    run = recorder.run(describe(engine, workload), _tapes(engine, handles, complete_tapes))
    run.info["utilisation"] = utilisation(run, engine.pair, sampler.summary(), ceilings)
    return run


def describe(engine: LiveEngine, workload: Workload) -> dict[str, Any]:
    """Return the contents of run.toml for a live run."""
    pair = engine.pair
    return {
        "kind": "live",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(pair.device),
        "pair": pair.name,
        "pair_models": pair.origins.describe(),
        "dtype": str(pair.dtype).removeprefix("torch."),
        "max_context": engine.max_context,
        "prefill_tokens": engine.prefill_tokens,
        "architecture": engine.architecture.to_dict(),
        "workload": workload.info | ({} if workload.concurrency is None else {"concurrency": workload.concurrency}),
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Return the versions of what decides times and outputs."""
    return {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}


def device_name(device: torch.device) -> str:
    """Return a readable name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})"


def _tapes(engine: LiveEngine, handles: list[Handle], complete: bool) -> dict[int, np.ndarray]:
    """Return the tapes of finished requests.

    complete: if the last output token was never drafted, ask the draft model about it, unless nothing ever is.
    """
    tapes, complete = {}, complete and engine.architecture.drafts
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
