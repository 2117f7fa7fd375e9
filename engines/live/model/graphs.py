"""Segments of work captured once and replayed: a CUDA graph on a GPU, a plain call on the CPU.

A replay's only inputs are slot numbers (and, for prefill, how the prompts are packed), written to tensors that
stay at their place. Batches are padded with the scratch slot to the next captured size. One set of graphs serves
one stream, whose work runs one after another, so its graphs may share memory; two streams share nothing.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engines.live.device.host import Numbers, staged, to_host
from engines.live.device.streams import Stream
from engines.live.model.attention import Layout, packed_places
from engines.live.model.eager import EagerRunner
from engines.live.model.stages import Stages
from engines.policy.architecture import Segment
from engines.policy.captured_sizes import CapturePlan, least_from
from engines.policy.segment_shape import SegmentShape

WARM_UPS = 2


class Captured:
    """A function over tensors at fixed places, ready to be replayed. Replays give the same output tensor."""

    def __init__(
        self, function: Callable[[], Tensor | None], stream: Stream, pool: Any, counted: bool = False
    ) -> None:
        """counted: know how many kernels a replay launches (`kernels`), which a graph that is kept can tell."""
        self._function = function
        self.kernels = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        for _ in range(WARM_UPS):
            function()
        if stream.cuda is not None:
            stream.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph(keep_graph=counted)
            with torch.cuda.graph(self._graph, pool=pool, stream=stream.cuda, capture_error_mode="thread_local"):
                self.output = function()
            if counted:
                self.kernels = _count_nodes(self._graph)
                self._graph.instantiate()

    def replay(self) -> Tensor | None:
        if self._graph is not None:
            self._graph.replay()
        else:
            self.output = self._function()
        return self.output


@dataclass
class _Shape:
    """The places of a captured segment's inputs."""

    slots: Tensor
    graphs: dict[Any, Captured] = field(default_factory=dict)


@dataclass
class _Prompts(_Shape):
    """The same of a prefill: its last sequence takes the padding."""

    layout: Layout = field(kw_only=True)


class GraphRunner(EagerRunner):
    """Runs segments on one stream by replaying graphs; what was not captured runs as it is."""

    def __init__(
        self, stages: Stages, stream: Stream, plan: CapturePlan, sampling: bool = False, counted: bool = False
    ) -> None:
        super().__init__(stages)
        self.stream, self.sampling, self._counted = stream, sampling, counted
        self._pool = torch.cuda.graph_pool_handle() if stream.cuda is not None else None
        self._batches: dict[Segment, dict[int, _Shape]] = {
            Segment.DRAFT: self._uniform(plan.draft_batches),
            Segment.VERIFY: self._uniform(plan.verify_batches),
        }
        self._prefills = {tokens: self._ragged(plan.prompts, tokens) for tokens in plan.prefill_tokens}
        self._plan = plan
        self._tasks = self._list_tasks()

    def __len__(self) -> int:
        return len(self._tasks)

    def capture(self, progress: Callable[[], None] = lambda: None) -> None:
        """Capture everything; calls progress after each. Large shapes first, so that small ones reuse memory."""
        with torch.inference_mode(), self.stream.turn():
            for shape, key, function in self._tasks:
                shape.graphs[key] = Captured(function, self.stream, self._pool, self._counted)
                progress()

    def ready(
        self, segment: Segment, slots: Sequence[int], counts: Sequence[int], k: int, sampling: bool
    ) -> Callable[[], Tensor | None]:
        if segment in (Segment.PREFILL_DRAFT, Segment.PREFILL_TARGET):
            prompts = self._prefill_shape(len(slots), sum(counts))
            graph = prompts.graphs.get((segment, sampling)) if prompts else None
            if prompts is None or graph is None:
                return super().ready(segment, slots, counts, k, sampling)
            return partial(self._replay, self._prefill_inputs(prompts, slots, counts), [graph], len(slots))
        shape = self._batch_shape(segment, len(slots))
        graph = shape.graphs.get((k if segment is Segment.VERIFY else "first", sampling)) if shape else None
        if shape is None or graph is None:
            return super().ready(segment, slots, counts, k, sampling)
        padding = [self.stages.scratch] * (len(shape.slots) - len(slots))
        graphs = [graph]
        if segment is Segment.DRAFT:
            graphs += [shape.graphs["next", sampling] for _ in range(k - 1)]
        return partial(self._replay, [self._input(shape.slots, [*slots, *padding])], graphs, len(slots))

    def kernels(self, shape: SegmentShape) -> int:
        """Return the kernels that the captured graphs of a shape launch, in a runner that counts them."""
        size, k = shape.batch_size, shape.draft_length
        if not k:
            prompts = self._prefill_shape(size, shape.tokens)
            assert prompts is not None
            return prompts.graphs[shape.segment, False].kernels
        found = self._batch_shape(shape.segment, size)
        assert found is not None
        if shape.segment is Segment.VERIFY:
            return found.graphs[k, False].kernels
        following = found.graphs["next", False].kernels if k > 1 else 0
        return found.graphs["first", False].kernels + (k - 1) * following

    def _replay(
        self, inputs: Sequence[tuple[Tensor, Tensor]], graphs: Sequence[Captured], size: int
    ) -> Tensor | None:
        """inputs: places, and what to put there. Returns the members' part of the first graph's result, on its way
        to the host."""
        for place, values in inputs:
            place.copy_(values, non_blocking=True)
        output = graphs[0].replay()
        result = None if output is None else to_host(output[:size])
        for graph in graphs[1:]:
            graph.replay()
        return result

    def _uniform(self, sizes: Sequence[int]) -> dict[int, _Shape]:
        return {size: _Shape(self._scratch_slots(size)) for size in sizes}

    def _ragged(self, prompts: int, tokens: int) -> _Prompts:
        """Room for `prompts` prompts, and one sequence in the scratch slot that takes the padding."""
        share, rest = divmod(tokens, prompts + 1)  # no sequence may be longer than a row of the pool, not even now
        layout = Layout.of([share + (i < rest) for i in range(prompts + 1)], self.stages.device)
        layout = dataclasses.replace(layout, longest=min(tokens, self.stages.row_length))
        return _Prompts(self._scratch_slots(prompts + 1), layout=layout)

    def _scratch_slots(self, size: int) -> Tensor:
        return torch.full((size,), self.stages.scratch, dtype=torch.int64, device=self.stages.device)

    def _batch_shape(self, segment: Segment, size: int) -> _Shape | None:
        shapes = self._batches[segment]
        return shapes.get(least_from(list(shapes), size) or 0)

    def _prefill_shape(self, prompts: int, tokens: int) -> _Prompts | None:
        shape = self._prefills.get(least_from(list(self._prefills), tokens) or 0)
        padding = len(shape.layout.owner) - tokens if shape else 0
        return shape if prompts <= self._plan.prompts and padding <= self.stages.row_length else None

    def _list_tasks(self) -> list[tuple[_Shape, Any, Callable[[], Tensor | None]]]:
        stages = self.stages
        tasks: list[tuple[_Shape, Any, Callable[[], Tensor | None]]] = []
        for x in (False, True) if self.sampling else (False,):
            for prompts in self._prefills.values():
                place = (prompts.slots, prompts.layout)
                tasks.append((prompts, (Segment.PREFILL_DRAFT, x), partial(stages.prefill_draft, *place)))
                tasks.append((prompts, (Segment.PREFILL_TARGET, x), partial(stages.prefill_target, *place, x)))
            for shape in self._batches[Segment.DRAFT].values():
                tasks.append((shape, ("first", x), partial(stages.draft_first, shape.slots, x)))
                if max(self._plan.draft_lengths) > 1:
                    tasks.append((shape, ("next", x), partial(stages.draft_next, shape.slots, x)))
            for shape in self._batches[Segment.VERIFY].values():
                tasks += [
                    (shape, (k, x), partial(stages.verify, shape.slots, k, x)) for k in self._plan.draft_lengths
                ]
        return tasks[::-1]

    def _prefill_inputs(
        self, shape: _Prompts, slots: Sequence[int], counts: Sequence[int]
    ) -> list[tuple[Tensor, Tensor]]:
        layout, prompts = shape.layout, len(shape.slots) - 1
        padding = len(layout.owner) - sum(counts)
        unused = prompts - len(slots)
        all_counts = [*counts, *[0] * unused, padding]
        owner, offset = packed_places(all_counts)
        return [
            self._input(shape.slots, [*slots, *[self.stages.scratch] * (unused + 1)]),
            self._input(layout.counts, all_counts),
            self._input(layout.owner, owner),
            self._input(layout.offset, offset),
        ]

    def _input(self, place: Tensor, values: Numbers) -> tuple[Tensor, Tensor]:
        return place, staged(values, place.device)


def _count_nodes(graph: torch.cuda.CUDAGraph) -> int:
    """Return the nodes of a captured graph, which must have been kept. torch has no call for it."""
    runtime = ctypes.CDLL(f"libcudart.so.{str(torch.version.cuda).partition('.')[0]}")
    count = ctypes.c_size_t()
    status = runtime.cudaGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    if status:
        raise RuntimeError(f"cudaGraphGetNodes failed with status {status}")
    return count.value
