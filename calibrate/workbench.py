"""A device set up for measuring: the stages of a pair, and any segment of them on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engines.live.device.streams import Stream, timed
from engines.live.model.eager import EagerRunner
from engines.live.model.graphs import GraphRunner
from engines.live.model.pairs import Pair
from engines.live.model.stages import Stages
from engines.policy.architecture import Segment
from engines.policy.captured_sizes import CapturedSizes, CapturePlan
from engines.policy.segment_shape import SegmentShape

_Found = TypeVar("_Found")
CONTEXT_SPREAD = 1 / 3  # from the mean context of a batch to its longest, as a fraction of the mean


@dataclass(frozen=True)
class RepeatableCall:
    """A segment that can be run again and again.

    reset: restores the tables. ready: does the work of the host that can be done beforehand, and returns the call to
    time.
    """

    reset: Callable[[], Any]
    ready: Callable[[], Callable[[], Any]]

    def __call__(self) -> None:
        self.reset()
        self.ready()()


class Workbench:
    """Runs segments in slots of its own, which no other workbench on the same stages may use.

    runner: uncaptured by default; `make_runner` makes the one that an engine uses. The slots hold random tokens.
    """

    def __init__(self, stages: Stages, first_slot: int, slots: int, runner: EagerRunner | None = None) -> None:
        self.stages, self.runner = stages, runner or EagerRunner(stages)
        self.slots = list(range(first_slot, first_slot + slots))
        stages.fill_randomly(slice(first_slot, first_slot + slots))
        _wait_for(stages.device)

    def call(self, shape: SegmentShape) -> RepeatableCall:
        """Return a call of a segment on the first slots. The tokens of a prefill are divided evenly.

        Contexts are spread around their mean, as those of requests in progress are (CONTEXT_SPREAD, less where the
        slots end).
        """
        size, k = shape.batch_size, shape.draft_length
        slots, stages = self.slots[:size], self.stages
        share, rest = divmod(shape.tokens, size)
        counts = [share + (i < rest) for i in range(size)]
        known = counts if shape.prefills else self._contexts(size, int(shape.context_tokens))
        rows, lengths = (torch.tensor(values, device=stages.device) for values in (slots, known))

        def reset() -> None:  # stages extend the sequences, but every call must start from the same state
            stages.set_lengths(rows, lengths, k)

        return RepeatableCall(reset, lambda: self.runner.ready(shape.segment, slots, counts, k, False))

    def _contexts(self, size: int, mean: int) -> list[int]:
        width = min(round(CONTEXT_SPREAD * mean), self.stages.max_context - mean - 1, mean - 2) if size > 1 else 0
        return [round(length) for length in np.linspace(mean - width, mean + width, size)]

    def count_kernels(self, shape: SegmentShape) -> int:
        """Return the number of kernels of a segment: nodes of its graphs or, on a CPU, operators that are not views.

        This uses no profiler: CUPTI stays attached to a process and slows everything that follows.
        """
        if isinstance(self.runner, GraphRunner) and self.stages.device.type == "cuda":
            return self.runner.kernels(shape)
        call, counter = self.call(shape), _OperatorCounter()
        call()
        with counter:
            call()
        return counter.count

    def time(self, stream: Stream, *calls: RepeatableCall) -> list[float]:
        """Return the duration of each call on the stream in seconds, timed as in an engine's spans."""
        return [end - start for start, end in self.spans(stream, *calls)]

    def spans(self, stream: Stream, *calls: RepeatableCall) -> list[tuple[float, float]]:
        """Return start and end of calls that follow one another on the stream, on the clock of time.perf_counter.

        The calls are the segments of one step: they start from the same tables.
        """

        def ready() -> list[Callable[[], Any]]:
            calls[0].reset()
            return [call.ready() for call in calls]

        _, times = timed(stream, ready)
        return list(pairwise(times))


def make_runner(
    stages: Stages, stream: Stream, shapes: Sequence[SegmentShape], graphs: bool | None = None
) -> EagerRunner:
    """Return the runner that an engine would use for these shapes: on a GPU, captured graphs of exactly these sizes.

    graphs: whether to capture; by default on a GPU only.
    """
    if not (stream.cuda is not None if graphs is None else graphs):
        return EagerRunner(stages)
    sizes = {segment: {shape.batch_size for shape in shapes if shape.segment is segment} for segment in Segment}
    draft, verify = sizes[Segment.DRAFT], sizes[Segment.VERIFY]
    tokens = sorted({shape.tokens for shape in shapes if shape.prefills})
    plan = CapturePlan(
        draft_batch=max(draft, default=0),
        verify_batch=max(verify, default=0),
        draft_lengths=tuple(sorted({shape.draft_length for shape in shapes if not shape.prefills})),
        prompts=max(sizes[Segment.PREFILL_DRAFT] | sizes[Segment.PREFILL_TARGET], default=0),
        tokens=tokens[-1] if tokens else 0,
        sizes=CapturedSizes(sorted(draft | verify), tokens),
    )
    runner = GraphRunner(stages, stream, plan, counted=True)
    _wait_for(stages.device)  # the inputs of the captures were made on another stream
    runner.capture()
    return runner


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def alternating_workers() -> Iterator[Callable[[Callable[[], _Found]], _Found]]:
    """Yield a function that runs a measurement in one of two threads, in turn, and returns its result."""

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        threads = cycle((first, second))
        yield lambda measure: next(threads).submit(torch.inference_mode()(measure)).result()


def make_stages(pair: Pair, slots: int, draft_length: int, context_tokens: int) -> Stages:
    """Make stages with room for `slots` requests of `context_tokens` tokens and their drafts."""
    return Stages(pair, slots, draft_length, context_tokens + 1)


class _OperatorCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        views = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        self.count += not views
        return func(*args, **(kwargs or {}))


class Budget:
    """A time limit for measurements, in seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = time.perf_counter()

    @property
    def spent_s(self) -> float:
        return time.perf_counter() - self._start

    @property
    def over(self) -> bool:
        return self.spent_s >= self.seconds
