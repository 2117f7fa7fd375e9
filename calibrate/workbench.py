"""A device set up for measuring: the stages of a pair, and any work of them on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engines.live.device.streams import Stream
from engines.live.model.eager import EagerRunner
from engines.live.model.graphs import GraphRunner, Plan
from engines.live.model.pairs import Pair
from engines.live.model.stages import Stages
from engines.policy.architecture import Segment

_Found = TypeVar("_Found")


class Load(NamedTuple):
    """A job of work for one model: `batch` requests.

    Prefill: `tokens` prompt tokens in all, shared out evenly. Draft, verify: `draft_length` drafts each, after
    `context_tokens` tokens each.
    """

    segment: Segment
    batch: int
    draft_length: int = 0
    prompt_tokens: int = 0
    context_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that go through the model (all k steps of a draft together)."""
        if self.segment is Segment.DRAFT:
            return self.batch * self.draft_length
        if self.segment is Segment.VERIFY:
            return self.batch * (self.draft_length + 1)
        return self.prompt_tokens

    @property
    def name(self) -> str:
        """Short, for a table: draft4, verify64, prefill_target256."""
        return f"{self.segment}{self.batch if self.draft_length else self.prompt_tokens}"

    @property
    def columns(self) -> dict[str, Any]:
        return {
            "segment": str(self.segment),
            "batch_size": self.batch,
            "draft_length": self.draft_length,
            "tokens": self.tokens,
            "context_tokens": self.context_tokens,
        }


@dataclass(frozen=True)
class Work:
    """A load that can be done again and again. reset: puts the tables back to before it; ready: does what the host
    can do beforehand, and returns what is timed."""

    reset: Callable[[], Any]
    ready: Callable[[], Callable[[], Any]]

    def __call__(self) -> None:
        self.reset()
        self.ready()()


class Workbench:
    """Does loads in its own slots, which lie apart from those of every other workbench over the same stages.

    runner: how segments are run, by default as they are (`make_runner` has what an engine does). Slots hold random
    tokens.
    """

    def __init__(self, stages: Stages, first_slot: int, slots: int, runner: EagerRunner | None = None) -> None:
        self.stages, self.runner = stages, runner or EagerRunner(stages)
        self.slots = list(range(first_slot, first_slot + slots))
        for table in (stages.tokens, stages.drafts):
            table[first_slot : first_slot + slots].random_(0, stages.pair.vocabulary)
        _wait_for(stages.device)

    def work(self, load: Load) -> Work:
        """A load as the members of a batch in the first slots of this bench."""
        slots, stages = self.slots[: load.batch], self.stages
        share, rest = divmod(load.prompt_tokens, load.batch)
        counts = [share + (i < rest) for i in range(load.batch)]
        known = counts if load.prompt_tokens else [load.context_tokens] * load.batch
        rows, lengths = (torch.tensor(values, device=stages.device) for values in (slots, known))

        def reset() -> None:  # stages lengthen sequences; what they then find must be the same each time
            stages.lengths.index_copy_(0, rows, lengths)
            stages.draft_lengths.index_fill_(0, rows, load.draft_length)

        return Work(reset, lambda: self.runner.ready(load.segment, slots, counts, load.draft_length, False))

    def time(self, stream: Stream, work: Work) -> float:
        """Seconds that the stream takes for one call, as an engine's spans count them."""
        start, end = self.span(stream, work)
        return end - start

    def span(self, stream: Stream, work: Work) -> tuple[float, float]:
        """Start and end of one call on the stream, on time.perf_counter's clock."""
        with stream.turn():
            work.reset()
            call = work.ready()
            marks = [stream.mark()]
            call()
            marks.append(stream.mark())
        start, end = stream.times(marks)
        return start, end


def make_runner(
    stages: Stages, stream: Stream, loads: Sequence[Load], graphs: bool | None = None
) -> EagerRunner:  # fmt: skip
    """What an engine would run these loads with on a stream: captured graphs of just their sizes on a GPU. graphs:
    capture or not, whatever the device."""
    if not (stream.cuda is not None if graphs is None else graphs):
        return EagerRunner(stages)
    decodes = [load for load in loads if load.segment in (Segment.DRAFT, Segment.VERIFY)]
    prefills = [load for load in loads if load not in decodes]
    tokens = sorted({load.prompt_tokens for load in prefills})
    plan = Plan(
        draft_batch=max((load.batch for load in decodes if load.segment is Segment.DRAFT), default=0),
        verify_batch=max((load.batch for load in decodes if load.segment is Segment.VERIFY), default=0),
        draft_lengths=tuple(sorted({load.draft_length for load in decodes})),
        prompts=max((load.batch for load in prefills), default=0),
        tokens=tokens[-1] if tokens else 0,
    )
    sizes = sorted({load.batch for load in decodes})
    runner = GraphRunner(stages, stream, plan, batch_sizes=sizes, token_sizes=tokens)
    _wait_for(stages.device)  # what the captures read was made on another stream
    runner.capture()
    return runner


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def alternating_workers() -> Iterator[Callable[[Callable[[], _Found]], _Found]]:
    """A function that calls a measurement in one of two threads, by turns, and returns what it found."""

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        threads = cycle((first, second))
        yield lambda measure: next(threads).submit(torch.inference_mode()(measure)).result()


def make_stages(pair: Pair, slots: int, draft_length: int, context_tokens: int) -> Stages:
    """Stages with room for `slots` requests of `context_tokens` tokens and their drafts."""
    return Stages(pair, slots, draft_length, context_tokens + 1)


def count_kernels(device: torch.device, work: Callable[[], Any]) -> int:
    """Kernels that one call launches: device kernels on a GPU, computing (not viewing) operators on a CPU. Give it
    uncaptured work, of which a graph replays the same kernels; it is done once before it is counted."""
    work()
    if device.type == "cuda":
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            work()
            torch.cuda.synchronize(device)
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())
    counter = _OperatorCounter()
    with counter:
        work()
    return counter.count


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
    """Time that a measurement may take, seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = time.perf_counter()

    @property
    def spent_s(self) -> float:
        return time.perf_counter() - self._start

    @property
    def over(self) -> bool:
        return self.spent_s >= self.seconds
