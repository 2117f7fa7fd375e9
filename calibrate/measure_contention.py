"""How much stages slow each other down when streams run at once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
import torch

from calibrate.overlap import Span, no_hiccups, rate_beside_all, times_beside
from calibrate.profile import CONTENTION_COLUMNS
from calibrate.stage_costs import Grid, Progress
from calibrate.workbench import Workbench, alternating_workers, make_runner, make_stages
from engines.live.device.host import lane_settings
from engines.live.device.streams import Stream, make_stream
from engines.live.model.pairs import Pair
from engines.policy.architecture import Segment, Step
from engines.policy.segment_shape import SegmentShape

Known = dict[tuple[SegmentShape, frozenset[SegmentShape]], float]  # rate of a segment beside others
FEWEST = 5  # calls that each stream of a group completes at least


def default_groups(grid: Grid) -> list[tuple[SegmentShape, ...]]:
    """Return pairs and triples of stages that lanes run together, over the grid's ranges.

    Every draft meets every verify, at batches a third and a few requests apart. Prefills, no larger than what prompts
    of the middle context can pack, meet some of these, alone and together.
    """
    k, context = middle(grid.drafting), middle(grid.contexts)
    sizes, tokens = spaced(grid.batches, 4 / 3, apart=4), _prefills(grid, context)
    some = spaced(sizes, 4)

    def draft(n: int) -> SegmentShape:
        return SegmentShape.draft(n, k, context)

    def verify(n: int) -> SegmentShape:
        return SegmentShape.verify(n, k, context)

    def prefill(segment: Segment, total: int) -> SegmentShape:
        packed = next((n for n in grid.packed if total <= n * context), grid.packed[-1])
        return SegmentShape.prefill(segment, packed, total)

    partners = [*map(draft, sorted({some[0], some[-1]})), *map(verify, some)]
    prompts = [prefill(segment, total) for segment in Step.PREFILL.segments for total in tokens]
    fewer = [prefill(segment, tokens[len(tokens) // 2]) for segment in Step.PREFILL.segments]
    pairs = [(draft(n), verify(m)) for n in sizes for m in sizes]
    pairs += [(prompt, other) for prompt in prompts for other in partners]
    return [*pairs, *((draft(n), verify(n), prompt) for n in some for prompt in fewer)]


def _prefills(grid: Grid, context: int) -> list[int]:
    """Tokens of the prefills to measure beside others: where a GPU is busy with one, a third more tells."""
    fit = [total for total in grid.prompt_tokens if total <= grid.packed[-1] * context] or grid.prompt_tokens[:1]
    most = fit[-1]
    return sorted({*spaced(fit, 4), *(total for total in spaced(fit, 4 / 3) if total * 8 >= most)})


def spaced(values: Sequence[int], factor: float, apart: int = 1) -> list[int]:
    """Return the largest of rising values, others a factor and a number apart or more, and the smallest."""
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        if value == values[0] or (value * factor <= kept[-1] and value + apart <= kept[-1]):
            kept.append(value)
    return kept[::-1]


def middle(values: Sequence[int]) -> int:
    """Return the value nearest to the geometric mean of the first and the last."""
    middle = math.sqrt(values[0] * values[-1])
    return min(values, key=lambda value: abs(math.log(value / middle)))


def shapes_by_lane(groups: Sequence[tuple[SegmentShape, ...]]) -> list[list[SegmentShape]]:
    """What each lane runs, group by group: the first shape of every group, then the second ones, and so on."""
    return [[group[i] for group in groups if i < len(group)] for i in range(max(map(len, groups)))]


def widths_of(lanes_shapes: Sequence[Sequence[SegmentShape]]) -> list[int]:
    """Slots that each lane needs."""
    return [max(shape.batch_size for shape in shapes) for shapes in lanes_shapes]


def longest_of(groups: Sequence[tuple[SegmentShape, ...]]) -> int:
    """Tokens of the longest sequence before a step of these groups."""
    shapes = [shape for group in groups for shape in group]
    return max(math.ceil(shape.context_tokens or shape.tokens / shape.batch_size) for shape in shapes)


def measure_contention(
    pair: Pair, grid: Grid, groups: Sequence[tuple[SegmentShape, ...]], budget_s: float, progress: Progress
) -> pd.DataFrame:
    """The profile's contention table: one thread and one stream per segment, each running back to back, from
    graphs of the stream's own on a GPU.

    solo_ms: a call on the device, alone, right before: slow drift of the machine cancels. rate: speed while all of
    the group were on the device, against that (calibrate.overlap): time that a lane's host took between two calls,
    when the others had the device to themselves, does not count. Every group gets an equal share of the budget, a
    third of it for running alone.
    """
    grid.check(pair.max_context)
    lanes_shapes = shapes_by_lane(groups)
    widths = widths_of(lanes_shapes)
    stages = make_stages(pair, sum(widths), grid.draft_lengths[-1], longest_of(groups))
    streams = [make_stream(pair.device) for _ in widths]
    share_s = budget_s / len(groups)
    rows: list[dict[str, Any]] = []
    with lane_settings(pair.device), torch.inference_mode():
        progress("getting ready", 0.0)
        runners = [make_runner(stages, *each) for each in zip(streams, lanes_shapes, strict=True)]
        benches = [
            Workbench(stages, end - width, width, runner)
            for end, width, runner in zip(accumulate(widths), widths, runners, strict=True)
        ]
        known: Known = {}
        for done, group in sorted(enumerate(groups), key=lambda place: len(place[1])):
            name = "+".join(shape.name for shape in group)
            progress(f"together: {name}", done / len(groups))
            lanes = list(zip(benches, streams, group, strict=False))
            solo = [_mean_s(_spans([lane], share_s / 3 / len(group))[0]) for lane in lanes]
            found = times_beside(_spans(lanes, share_s * 2 / 3))
            for i, (shape, alone_s, (calls, beside)) in enumerate(zip(group, solo, found, strict=True)):
                others = frozenset(range(len(group))) - {i}
                rate = rate_beside_all(calls * alone_s, beside, others, partial(_known, known, group, i))
                known[shape, frozenset(group) - {shape}] = rate = min(rate, 1.0)
                kernels = benches[i].count_kernels(shape)
                measured = {"solo_ms": alone_s * 1e3, "kernels": kernels, "rate": rate}
                rows.append({"group": name, **shape.columns, **measured})
    return pd.DataFrame(rows)[CONTENTION_COLUMNS]


Lane = tuple[Workbench, Stream, SegmentShape]


def _spans(lanes: Sequence[Lane], seconds: float) -> list[list[Span]]:
    """Each lane's calls on its stream, while all of them go again and again. Each lane's work passes from thread to
    thread, as an engine's does."""
    barrier = threading.Barrier(len(lanes))
    spans: list[list[Span]] = [[] for _ in lanes]
    failures: list[BaseException] = []
    stop = threading.Event()

    def run(i: int, bench: Workbench, stream: Stream, shape: SegmentShape) -> None:
        try:
            with torch.inference_mode(), alternating_workers() as workers:
                call = partial(bench.spans, stream, bench.call(shape))
                workers(call)
                barrier.wait()
                deadline = time.perf_counter() + seconds
                while not stop.is_set():
                    spans[i].extend(workers(call))
                    if time.perf_counter() > deadline and all(len(each) > FEWEST for each in spans):
                        stop.set()
        except BaseException as error:
            failures.append(error)
            stop.set()
            barrier.abort()

    threads = [threading.Thread(target=run, args=(i, *lane)) for i, lane in enumerate(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return spans


def _mean_s(spans: Sequence[Span]) -> float:
    """Return the mean duration, but for hiccups."""
    return float(
        np.mean([end - start for (start, end), usual in zip(spans, no_hiccups(spans), strict=True) if usual])
    )


def _known(known: Known, group: Sequence[SegmentShape], i: int, others: frozenset[int]) -> float | None:
    """The rate of a group's segment beside some of the others, if a group of just these was measured before."""
    return known.get((group[i], frozenset(group[j] for j in others)))
