"""A device set up for measuring: the stages of a pair, and any work of them on demand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engines.architecture import Segment
from engines.live.attention import Layout
from engines.live.pairs import Pair
from engines.live.stages import Stages
from engines.live.streams import Stream


class Load(NamedTuple):
    """A piece of work for one model: `batch` requests.

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
            "batch": self.batch,
            "draft_length": self.draft_length,
            "tokens": self.tokens,
            "context_tokens": self.context_tokens,
        }


class Workbench:
    """Runs loads in its own slots, which lie apart from those of every other workbench over the same stages."""

    def __init__(self, stages: Stages, first_slot: int, slots: int) -> None:
        self.stages = stages
        self.slots = torch.arange(first_slot, first_slot + slots, device=stages.device)
        stages.tokens.random_(0, stages.pair.vocabulary)
        stages.drafts.random_(0, stages.pair.vocabulary)

    def work(self, load: Load) -> Callable[[], Any]:
        """A function that does the load once, ready to be called again and again."""
        slots, stages = self.slots[: load.batch], self.stages
        if load.segment is Segment.DRAFT:
            stages.lengths[slots] = load.context_tokens
            return lambda: stages.draft(slots, load.draft_length)
        if load.segment is Segment.VERIFY:
            context = torch.tensor(load.context_tokens, device=stages.device)

            def verify() -> None:
                stages.lengths[slots] = context  # a verify lengthens its sequences
                stages.verify(slots, load.draft_length)

            stages.draft_lengths[slots] = load.draft_length
            return verify
        share, rest = divmod(load.prompt_tokens, load.batch)
        counts = [share + (i < rest) for i in range(load.batch)]
        lengths = torch.tensor(counts, device=stages.device)
        layout = Layout.of(counts, stages.device)
        prefill = stages.prefill_draft if load.segment is Segment.PREFILL_DRAFT else stages.prefill_target

        def run_prefill() -> None:
            stages.lengths[slots] = lengths
            prefill(slots, layout)

        return run_prefill

    def time(self, stream: Stream, work: Callable[[], Any]) -> float:
        """Seconds that the stream takes for one call."""
        with stream.turn():
            marks = [stream.mark()]
            work()
            marks.append(stream.mark())
        start, end = stream.times(marks)
        return end - start


def make_stages(pair: Pair, slots: int, draft_length: int, context_tokens: int) -> Stages:
    """Stages with room for `slots` requests of `context_tokens` tokens and their drafts."""
    return Stages(pair, slots, draft_length, context_tokens + 1)


def count_kernels(device: torch.device, work: Callable[[], Any]) -> int:
    """Kernels that one call launches: device kernels on a GPU, computing (not viewing) operators on a CPU."""
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
