"""Where the time of a draft and a verify goes, kernel by kernel, as the engines run them on a GPU.

A kernel may start while the one before it still runs, so its own duration says little. `advance_us` is the time from
the end of all kernels before it, or from its own start if it began later, to its own end: the advances of a stage sum
to the time in which its kernels ran. What is left is `idle`: the device waited for the next graph to be launched,
which takes longer under the profiler than without it. One row a kernel name; times are of one replay, the median of
five.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
import torch

from calibrate.workbench import RepeatableCall, Workbench, make_runner, make_stages
from engines.live.device.streams import Stream, make_stream
from engines.live.model.pairs import load_pair
from engines.policy.architecture import PD, Step
from engines.policy.draft_length import FixedDraftLength
from engines.policy.segment_shape import SegmentShape
from experiments.program.progress import Report
from experiments.runner.preflight import check_fits

REPLAYS, TIMES = 5, 41
NAME_LENGTH = 48


class Kernel(NamedTuple):
    """One launch, microseconds."""

    name: str
    start: float
    end: float


def advances(kernels: Iterable[Kernel]) -> pd.DataFrame:
    """One row a name, and one called idle: launches, advance_us, duration_us (both summed over the launches)."""
    rows, done = [], None
    for kernel in sorted(kernels, key=lambda each: (each.start, each.end)):
        before = kernel.start if done is None else done
        done = max(before, kernel.end)
        begun, lasted = max(before, kernel.start), kernel.end - kernel.start
        rows.append(("idle", 0, begun - before, begun - before))
        rows.append((kernel.name, 1, done - min(begun, done), lasted))
    table = pd.DataFrame(rows, columns=["kernel", "launches", "advance_us", "duration_us"])
    summed = table.groupby("kernel", as_index=False).sum().sort_values("advance_us", ascending=False)
    return summed.sort_values("kernel", key=lambda names: names == "idle", kind="stable", ignore_index=True)


def short(name: str) -> str:
    """A kernel's name without what C++ says around it; the rest may be cut off."""
    return name.removeprefix("void ").replace("at::native::", "").split("(")[0][:NAME_LENGTH]


def profile_stage(stream: Stream, call: RepeatableCall) -> pd.DataFrame:
    """The columns of `advances`, the median replay by the time that its kernels ran."""
    from torch.profiler import ProfilerActivity, profile

    call()
    tables = []
    for _ in range(REPLAYS):
        with stream.turn():
            call.reset()
            ready = call.ready()
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                ready()
                torch.cuda.synchronize()
        events = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        kernels = [Kernel(short(e.name), e.time_range.start, e.time_range.end) for e in events]
        tables.append(advances(kernel for kernel in kernels if not kernel.name.startswith(("Memcpy", "Memset"))))
    ran = [table.loc[table["kernel"] != "idle", "advance_us"].sum() for table in tables]
    return tables[sorted(range(REPLAYS), key=ran.__getitem__)[REPLAYS // 2]]


@torch.inference_mode()
def profile_pair(
    name: str, batches: Sequence[int], context: int, k: int, device: str, progress: Report
) -> pd.DataFrame:
    """Draft and verify of each batch size. Adds to `advances` the columns segment, batch, stage_ms: the median time
    of the stage without the profiler."""
    pair = load_pair(name, device=device)
    stages = make_stages(pair, batches[-1], k, context + k + 1)
    stream = make_stream(pair.device)
    shapes = [decode(b, k, context) for decode in (SegmentShape.draft, SegmentShape.verify) for b in batches]
    bench = Workbench(stages, 0, batches[-1], make_runner(stages, stream, shapes))
    tables = []
    for done, shape in enumerate(shapes):
        progress(done, len(shapes))
        call = bench.call(shape)
        times = sorted(bench.time(stream, call)[0] for _ in range(TIMES))
        table = profile_stage(stream, call)
        table.insert(0, "segment", str(shape.segment))
        table.insert(1, "batch_size", shape.batch_size)
        table.insert(2, "stage_ms", 1e3 * times[TIMES // 2])
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def report(rows: pd.DataFrame) -> str:
    lines = []
    for (segment, batch, stage_ms), table in rows.groupby(["segment", "batch_size", "stage_ms"], sort=False):
        busy = table.loc[table["kernel"] != "idle", "advance_us"].sum()
        lines.append(f"{segment}, batch {batch}: {stage_ms:.2f} ms; its kernels, profiled: {busy / 1e3:.2f} ms")
        for row in table.to_dict("records"):
            launches, advance_us = row["launches"], row["advance_us"]
            each = advance_us / max(1, launches)
            lines.append(f"    {row['kernel']:{NAME_LENGTH}} {launches:4}  {advance_us:8.1f} us  each {each:7.2f}")
    return "\n".join(lines)


def check(name: str, batches: Sequence[int], context: int, k: int, device: str) -> None:
    """Raises InputError for what the pair or the device cannot hold."""
    lanes = PD.with_batch_limits({Step.DRAFT_VERIFY: batches[-1], Step.PREFILL: 1})
    architecture = lanes.replace(slots=batches[-1], draft_length=FixedDraftLength(k))
    check_fits(architecture, name, device=device, max_context=context + k + 2)
