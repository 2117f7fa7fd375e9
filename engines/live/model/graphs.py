"""Capture segments once and replay them: as CUDA graphs on a GPU, as plain calls on a CPU.

The only inputs of a replay are slot numbers and, for prefill, how the prompts are packed. They are copied into
tensors with fixed addresses. Batches are padded with the scratch slot to the next captured size. Each stream has its
own set of graphs. The graphs of one stream share memory, since they run one after another.
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
from engines.live.model.eager import EagerRunner, cut
from engines.live.model.stages import Stages
from engines.policy.architecture import Segment
from engines.policy.captured_sizes import CapturePlan, least_from
from engines.policy.segment_shape import SegmentShape

WARM_UPS = 2
CATCH_UP = "catch up"  # key of the graph of a pass that catches up


class Captured:
    """A function over tensors with fixed addresses, ready to be replayed. Replays return the same output tensor."""

    def __init__(
        self, function: Callable[[], Tensor | None], stream: Stream, pool: Any, counted: bool = False
    ) -> None:
        """counted: also count the kernels of a replay (`kernels`)."""
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
    """The input tensors of a captured segment."""

    slots: Tensor
    graphs: dict[Any, Captured] = field(default_factory=dict)


@dataclass
class _Prompts(_Shape):
    """The input tensors of a captured prefill. The last sequence takes the padding."""

    layout: Layout = field(kw_only=True)


@dataclass
class _Late(_Prompts):
    """The input tensors of a captured pass that catches up. first: [sequences] int64, see Stages.catch_up."""

    first: Tensor = field(kw_only=True)


class GraphRunner(EagerRunner):
    """Runs segments on one stream by replaying graphs, or uncaptured if there is no graph for them."""

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
        longest = (plan.draft_batch + 1) * stages.row_length  # what that many sequences can have at most
        late = [tokens for tokens in plan.catch_up_tokens if tokens <= longest]
        self._late = {tokens: self._late_shape(plan.draft_batch, tokens) for tokens in late}
        self._plan = plan
        self._tasks = self._list_tasks()

    def __len__(self) -> int:
        return len(self._tasks)

    def capture(self, progress: Callable[[], None] = lambda: None) -> None:
        """Capture all graphs, the largest first, so that the smaller ones reuse their memory.

        progress: called after each graph.
        """
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

    def ready_to_catch_up(
        self, slots: Sequence[int], lengths: Sequence[int], behind: Sequence[int]
    ) -> Callable[[], None]:
        replays = []
        for members, firsts, counts in cut(slots, lengths, behind):
            late = self._late.get(least_from(list(self._late), sum(counts)) or 0)
            graph = late.graphs.get(CATCH_UP) if late else None
            if late is None or graph is None or len(late.layout.owner) - sum(counts) > self.stages.row_length:
                return super().ready_to_catch_up(slots, lengths, behind)
            unused = len(late.slots) - len(members)
            inputs = [*self._prefill_inputs(late, members, counts), self._input(late.first, [*firsts, *[0] * unused])]
            replays.append(partial(self._replay, inputs, [graph], 0))

        def run() -> None:
            for replay in replays:
                replay()

        return run

    def kernels(self, shape: SegmentShape) -> int:
        """Return the number of kernels that the graphs of a shape launch. The runner must be `counted`."""
        size, k = shape.batch_size, shape.draft_length
        if shape.prefills:
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
        """Copy the inputs, replay the graphs, and return the members' part of the first result as a tensor on the
        host.

        inputs: pairs of an input tensor and its values.
        """
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
        """Return the inputs of a prefill of `prompts` prompts, plus a sequence in the scratch slot for padding."""
        share, rest = divmod(tokens, prompts + 1)  # no sequence may be longer than a row of the pool
        layout = Layout.of([share + (i < rest) for i in range(prompts + 1)], self.stages.device)
        layout = dataclasses.replace(layout, longest=min(tokens, self.stages.row_length))
        return _Prompts(self._scratch_slots(prompts + 1), layout=layout)

    def _late_shape(self, most: int, tokens: int) -> _Late:
        """Return the inputs of a pass that catches up with `tokens` tokens of up to `most` sequences."""
        prompts = self._ragged(most, tokens)
        return _Late(prompts.slots, layout=prompts.layout, first=torch.zeros_like(prompts.slots))

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
        for late in self._late.values():
            tasks.append((late, CATCH_UP, partial(stages.catch_up, late.slots, late.first, late.layout)))
        for x in (False, True) if self.sampling else (False,):
            for prompts in self._prefills.values():
                place = (prompts.slots, prompts.layout)
                if self._plan.drafts:
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
    """Return the number of nodes of a captured graph. It must have been kept, since torch has no call for this."""
    runtime = ctypes.CDLL(f"libcudart.so.{str(torch.version.cuda).partition('.')[0]}")
    count = ctypes.c_size_t()
    status = runtime.cudaGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    if status:
        raise RuntimeError(f"cudaGraphGetNodes failed with status {status}")
    return count.value
