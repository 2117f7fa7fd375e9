"""How long each stage takes alone, over batch, draft length, prompt and context."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from calibrate.workbench import Budget, Workbench, alternating_workers, make_runner, make_stages
from engines.errors import InputError
from engines.live.device.host import lane_settings
from engines.live.device.streams import Stream, make_stream
from engines.live.model.pairs import Pair
from engines.policy.architecture import Step
from engines.policy.captured_sizes import BATCHES, TOKENS
from engines.policy.segment_shape import SegmentShape

QUANTILES = {"p05_ms": 0.05, "p25_ms": 0.25, "p50_ms": 0.5, "p75_ms": 0.75, "p95_ms": 0.95}
IN_A_ROW = 3  # measurements of a step in a row, after one that does not count
FEWEST, MOST = 12, 400  # measurements of each point
STABLE = 0.02  # half-width of the median's 95% interval, as a fraction of the median

Progress = Callable[[str, float], None]  # what is being measured, fraction done


@dataclass(frozen=True)
class Grid:
    """The points to measure: every combination of each stage's axes.

    batches: requests in a draft or verify. draft_lengths: k; at 0 there is a verify alone. contexts: tokens of a
    request before the step. prompt_tokens: tokens of a prefill in all. packed: prompts that share a prefill.
    """

    batches: tuple[int, ...] = (1, 2, 4, 6, 12)
    draft_lengths: tuple[int, ...] = (1, 4, 8)
    contexts: tuple[int, ...] = (32, 256)
    prompt_tokens: tuple[int, ...] = (16, 64, 128, 256)
    packed: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for f in fields(self):
            values = tuple(sorted(set(getattr(self, f.name))))
            least = 0 if f.name == "draft_lengths" else 1
            if not values or values[0] < least:
                raise InputError(f.name, list(values), f"give one whole number or more, each at least {least}")
            object.__setattr__(self, f.name, values)
        if not self.drafting:
            raise InputError("draft_lengths", [0], "a profile has drafts too; add a draft length of 1 or more")
        if self.contexts[0] < 2:
            raise InputError("contexts", list(self.contexts), "a draft reads the last two tokens; use 2 or more")
        if self.packed[-1] > self.prompt_tokens[0]:
            raise InputError(
                "packed", list(self.packed), f"{self.prompt_tokens[0]} tokens cannot fill as many prompts"
            )

    def steps(self) -> list[tuple[SegmentShape, ...]]:
        """Return the points as an engine runs them: a draft and its verify, a prefill by one model and the other."""
        decode = itertools.product(self.batches, self.draft_lengths, self.contexts)
        prefill = itertools.product(self.packed, self.prompt_tokens)
        return [
            *(
                (SegmentShape.draft(n, k, context), SegmentShape.verify(n, k, context))
                if k
                else (SegmentShape.verify(n, 0, context),)
                for n, k, context in decode
            ),
            *(
                tuple(SegmentShape.prefill(segment, prompts, tokens) for segment in Step.PREFILL.segments)
                for prompts, tokens in prefill
                if tokens <= prompts * self.longest
            ),
        ]

    @property
    def drafting(self) -> tuple[int, ...]:
        """The draft lengths above 0."""
        return tuple(k for k in self.draft_lengths if k)

    def points(self) -> list[SegmentShape]:
        return [point for step in self.steps() for point in step]

    def with_captured_sizes(self) -> Grid:
        """Return the grid with every size between its smallest and its largest that an engine captures."""
        return replace(
            self,
            batches=_with_sizes_between(self.batches, BATCHES),
            prompt_tokens=_with_sizes_between(self.prompt_tokens, TOKENS),
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence before a step. The largest prefill packs as many prompts as can be, and no
        prompt is longer than its share of it, or than the longest context."""
        return max(self.contexts[-1], -(-self.prompt_tokens[-1] // self.packed[-1]))

    def check(self, positions: int) -> None:
        """Raises InputError if models that position so many tokens cannot hold the longest sequence of the grid."""
        k = self.draft_lengths[-1]
        room = positions - k - 2
        if room < 2:
            remedy = f"the models position {positions} tokens; use at most {positions - 4}"
            raise InputError("draft_lengths", k, remedy)
        if self.longest > room:
            raise InputError("contexts, prompt_tokens", self.longest, f"the pair takes at most {room} with k = {k}")


def _with_sizes_between(given: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    return (*given, *(size for size in sizes if given[0] < size < given[-1]))


def median_half_width(times: Sequence[float]) -> float:
    """Half the width of the median's 95% confidence interval, as a fraction of the median, from the order
    statistics (normal approximation to the binomial)."""
    ordered = np.sort(times)
    reach = 0.98 * np.sqrt(len(ordered))
    low = int(max(np.floor(len(ordered) / 2 - reach), 0))
    high = int(min(np.ceil(len(ordered) / 2 + reach), len(ordered) - 1))
    return float((ordered[high] - ordered[low]) / 2 / np.median(ordered))


def measure_stage_costs(pair: Pair, grid: Grid, budget_s: float, progress: Progress) -> pd.DataFrame:
    """Time every point of the grid alone until all medians are stable (95% interval within 2%) or the time is up.

    Returns the profile's stage costs. Segments run as an engine runs them: from captured graphs on a GPU (capturing
    does not count against the budget), in steps, so that a verify is queued behind its draft, and each step several
    times in a row, since a batch is mostly followed by one like it. The first of a row finds the caches as another
    step left them and does not count. Each round measures every step once, in another order, so that all points see
    the same drift of the machine. A row runs in one thread, as the batches of a worker do; a thread that was just
    woken launches more slowly. Two threads take turns. Every point is measured FEWEST times whatever the budget.
    """
    grid.check(pair.max_context)
    steps, points = grid.steps(), grid.points()
    slots = max(*grid.batches, *grid.packed)
    stages = make_stages(pair, slots, grid.draft_lengths[-1], grid.longest)
    stream = make_stream(pair.device)
    times: dict[SegmentShape, list[float]] = {point: [] for point in points}
    with torch.inference_mode(), lane_settings(pair.device), ExitStack() as stack:
        progress("getting ready", 0.0)
        bench = Workbench(stages, 0, slots, make_runner(stages, stream, points))
        kernels = {point: bench.count_kernels(point) for point in points}
        workers = stack.enter_context(alternating_workers())
        order, budget = random.Random(0), Budget(budget_s)
        for count in itertools.count(IN_A_ROW, IN_A_ROW):
            for step in order.sample(steps, len(steps)):
                row = workers(partial(_in_a_row, bench, stream, step, steps[0]))
                for point, each in zip(step, zip(*row, strict=True), strict=True):
                    times[point].extend(each)
                name = "+".join(point.name for point in step)
                progress(f"alone: {name}", min(max(budget.spent_s / max(budget_s, 1e-9), count / MOST), 1.0))
            stable = budget.over or all(median_half_width(t) <= STABLE for t in times.values())
            if count >= MOST or (count >= FEWEST and stable):
                break
    return pd.DataFrame([_row(point, kernels[point], times[point]) for point in points])


def _in_a_row(
    bench: Workbench, stream: Stream, step: Sequence[SegmentShape], decode: Sequence[SegmentShape]
) -> list[list[float]]:
    """Return the seconds of each segment of a step, IN_A_ROW times.

    Batches of a decode lane follow one another, the first of a row does not count. A prefill comes now and then, each
    time after `decode`: prefills in a row would heat the device until its clock falls.
    """
    calls = [bench.call(shape) for shape in step]
    before = [bench.call(shape) for shape in decode] if step[0].prefills else calls
    found = []
    for number in range(IN_A_ROW):
        if number == 0 or before is not calls:
            bench.time(stream, *before)
        found.append(bench.time(stream, *calls))
    return found


def _row(point: SegmentShape, kernels: int, times: list[float]) -> dict[str, object]:
    ms = np.array(times) * 1e3
    quantiles = {name: float(np.quantile(ms, q)) for name, q in QUANTILES.items()}
    return {**point.columns, "kernels": kernels, "repeats": len(ms), **quantiles, "mean_ms": float(ms.mean())}
