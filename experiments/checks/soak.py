"""Serve many requests of random lengths and cancel many: none is lost, no slot leaks, memory stays flat.

A small permutation pair serves them. So every finished output is compared with its closed form, and every cancelled
one with the beginning of it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import torch

from engines.live.model.pairs import load_pair
from engines.live.serving.engine import Handle, LiveEngine
from engines.live.serving.prompts import prompts_for
from engines.live.serving.serve import serve
from engines.pairs.permutation import expected_output, parse_pair
from engines.policy.architecture import Architecture
from engines.workload.workload import UniformLength, make_workload
from experiments.bench.engines import free_memory
from experiments.program.progress import Report

PAIR = "permutation:tiny+tiny-draft:alpha=0.8"
LENGTHS, CONTEXT = (UniformLength(1, 64), UniformLength(1, 48)), 128  # prompts and outputs; tokens per slot
SLOTS = 32
LOOKS = 20  # memory samples, spread evenly over the requests


def resident_mb() -> float:
    """Return the memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Canceller(threading.Thread):
    """Cancels random requests in any state, again and again."""

    def __init__(self, engine: LiveEngine, every_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.engine, self.every_s, self.rng = engine, every_s, random.Random(seed)
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(self.rng.expovariate(1 / self.every_s)):
            with self.engine.lock:
                here = list(self.engine.scheduler.requests)
                if here:
                    self.engine.cancel(self.rng.choice(here))


def soak(
    architecture: Architecture, device: str, requests: int, clients: int, progress: Report, seed: int = 0
) -> dict[str, object]:
    """Serve and check. Returns a row of results. Raises AssertionError naming what is wrong."""
    pair, spec = load_pair(PAIR, device=device), parse_pair(PAIR)
    workload = make_workload(requests, *LENGTHS, concurrency=clients, seed=seed)
    workload = prompts_for(pair, workload, seed)
    handles: list[Handle] = []
    memory: list[tuple[float, float]] = []

    def watch(done: int, total: int) -> None:
        progress(done, total)
        if done >= len(memory) * total / LOOKS:
            used = torch.cuda.memory_allocated() / 1e6 if device != "cpu" else 0.0
            memory.append((resident_mb(), used))

    started = time.perf_counter()
    with LiveEngine(architecture, pair, CONTEXT) as engine:
        canceller = Canceller(engine, every_s=0.004, seed=seed)
        canceller.start()
        run = serve(engine, workload, watch, on_end=handles.append, complete_tapes=False)
        canceller.stop.set()
        canceller.join()
        assert engine.scheduler.idle, "a request is still active"
        assert sorted(engine.scheduler.free_slots) == list(range(architecture.slots)), "a slot leaked"
    table = run.requests
    counts = table["status"].value_counts().to_dict()
    assert len(table) == len(handles) == requests, "a request was lost"
    assert set(counts) <= {"finished", "cancelled"}, f"requests ended in another way: {counts}"
    booked = table["accepted"] + table["rejected"] + table["discarded"]
    assert (table["drafted"] == booked).all(), "a draft was lost"
    for handle in handles:
        expected = expected_output(spec, handle.request.prompt or (), handle.request.max_tokens)
        whole = handle.state is not None and handle.state.status == "finished"
        right = list(expected) if whole else list(expected)[: len(handle.tokens)]
        assert handle.tokens == right, f"request {handle.request.id} has wrong tokens"
    seconds = time.perf_counter() - started
    assert counts.get("finished"), "every request was cancelled"
    (early_host, early_device), (late_host, late_device) = memory[min(LOOKS // 5, len(memory) - 1)], memory[-1]
    assert late_device < early_device + 1.0, f"device memory grew from {early_device} to {late_device} MB"
    free_memory(pair.device)
    return {
        "architecture": architecture.name, "requests": requests,
        "finished": int(counts.get("finished", 0)), "cancelled": int(counts.get("cancelled", 0)),
        "tokens": int(table["output_tokens"].sum()),
        "seconds": round(seconds, 1), "host_mb_at_20%": round(early_host), "host_mb_at_end": round(late_host),
        "device_mb_at_20%": round(early_device, 1), "device_mb_at_end": round(late_device, 1),
    }  # fmt: skip
