"""How fast the simulator is, and how its cost and memory grow with the load.

It measures compiled code where `make compiled` has built it, and plain Python with PDV_COMPILED=0.

Example: python -m experiments.bench.simulator --profile results/h100/fidelity/profile --trace requests.jsonl
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from calibrate.profile import Profile
from engines.compiled import in_use
from engines.policy.architecture import PD, Architecture, Step
from engines.workload.traces import read_trace
from engines.workload.workload import FixedLength, Workload, make_workload
from sim.acceptance_fits import from_profile
from sim.costs import CostModel
from sim.engine import simulate, summarise

TOKENS = FixedLength(128)  # of every prompt and output
REQUESTS = 2_000
REQUEST_COUNTS = (1_000, 10_000, 100_000, 1_000_000)
CLIENT_COUNTS = (10, 100, 1_000, 10_000)
LEAST_PER_CLIENT = 3
MIB = 2**20


class Load(NamedTuple):
    """One load of the benchmark. trace: replayed instead of a closed loop of `clients`. repeats: the best counts.
    record: keep the record, not only its summary."""

    name: str
    architecture: Architecture
    requests: int = REQUESTS
    clients: int = 64
    trace: Path | None = None
    repeats: int = 1
    record: bool = False

    def workload(self) -> Workload:
        if self.trace is not None:
            return read_trace(self.trace)
        return make_workload(self.requests, TOKENS, TOKENS, concurrency=self.clients)


def loads(trace: Path | None, largest: int) -> list[Load]:
    """Return the loads to measure. largest: most requests, and most clients, of those that show growth."""
    wide = PD.with_batch_limits({Step.PREFILL: 64, Step.DRAFT_VERIFY: 64})
    narrow = PD.with_batch_limits({Step.PREFILL: 4, Step.DRAFT_VERIFY: 64})
    found = []
    for record in (True, False):
        if trace is not None:
            found.append(Load("trace, PD 4-64", narrow, trace=trace, repeats=5, record=record))
        found += [Load("PD 64-64", wide, repeats=5, record=record), Load("PD 1-6", PD, repeats=5, record=record)]
    found += [Load("PD 64-64", wide, count) for count in REQUEST_COUNTS if count <= largest]
    for clients in CLIENT_COUNTS:
        if clients <= largest:
            found.append(Load("PD 1-6", PD, max(REQUESTS, LEAST_PER_CLIENT * clients), clients))
    return found


def measure(load: Load, folder: Path) -> dict[str, object]:
    """Simulate one load in this process.

    Times are CPU time, without making the workload and the cost model. growth_mib: how far the peak memory of the
    process rose above that with the workload made.
    """
    profile = Profile.load(folder)
    costs, acceptance, workload = CostModel(profile, extrapolate=True), from_profile(profile), load.workload()
    before, seconds = _peak_mib(), float("inf")
    predict = simulate if load.record else summarise
    for _ in range(load.repeats):
        started = time.process_time()
        predict(load.architecture, workload, costs, acceptance)
        seconds = min(seconds, time.process_time() - started)
    tokens = sum(request.max_tokens for request in workload.requests)
    return {
        "load": load.name, "kept": "record" if load.record else "summary", "clients": workload.concurrency or "open",
        "code": "compiled" if in_use() else "plain", "requests": len(workload.requests), "tokens": tokens,
        "seconds": seconds, "tokens_per_s": tokens / seconds,
        "us_per_token": seconds / tokens * 1e6, "growth_mib": _peak_mib() - before, "peak_mib": _peak_mib(),
    }  # fmt: skip


def measure_all(chosen: list[Load], folder: Path) -> Iterator[dict[str, object]]:
    """Measure each load in a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for load in chosen:
            yield pool.apply(measure, (load, folder))


def _peak_mib() -> float:
    """Return the most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, required=True, help="folder of the profile; it is extrapolated")
    parser.add_argument("--trace", type=Path, help="trace to replay under PD with batch limits of 4 and 64")
    parser.add_argument("--largest", type=int, default=100_000, help="most requests, and clients (default 100,000)")
    given = parser.parse_args()
    width = 14
    for place, row in enumerate(measure_all(loads(given.trace, given.largest), given.profile)):
        if place == 0:
            print(*(name.rjust(width) for name in row))
        print(
            *(
                f"{value:,.2f}".rjust(width) if isinstance(value, float) else str(value).rjust(width)
                for value in row.values()
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
