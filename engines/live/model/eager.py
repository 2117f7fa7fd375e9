"""Run segments eagerly, with every batch at its exact size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from engines.live.device.host import to_device, to_host
from engines.live.model.attention import Layout
from engines.live.model.stages import Stages
from engines.policy.architecture import Segment
from engines.policy.segment_shape import CATCH_UP_TOKENS


def cut(
    slots: Sequence[int], lengths: Sequence[int], behind: Sequence[int]
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yield slots, first positions and counts of passes of at most CATCH_UP_TOKENS tokens, in order of the slots."""
    members: list[int] = []
    firsts: list[int] = []
    counts: list[int] = []
    room = CATCH_UP_TOKENS
    for slot, length, missing in zip(slots, lengths, behind, strict=True):
        first = length - 2 - missing
        while missing:
            count = min(missing, room)
            members.append(slot)
            firsts.append(first)
            counts.append(count)
            first, missing, room = first + count, missing - count, room - count
            if not room:
                yield members, firsts, counts
                members, firsts, counts, room = [], [], [], CATCH_UP_TOKENS
    if members:
        yield members, firsts, counts


class EagerRunner:
    """Run segments by calling the stages, in a stream's turn. engines.live.model.graphs replays graphs instead."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages

    def ready(
        self, segment: Segment, slots: Sequence[int], counts: Sequence[int], k: int, sampling: bool
    ) -> Callable[[], Tensor | None]:
        """Prepare a segment on the host, and return the rest as a function to call in the same turn.

        slots: the members' slots. counts: their prompt lengths (prefill). k: the largest draft length among them.
        The function returns the stage's result, [batch, ...], as a tensor on the host that is complete once the
        stream has passed this point, or None if the stage has no result.
        """
        return lambda: self._run(segment, slots, counts, k, sampling)

    def ready_to_catch_up(
        self, slots: Sequence[int], lengths: Sequence[int], behind: Sequence[int]
    ) -> Callable[[], None]:
        """Prepare the passes in which the draft model catches up before it drafts, and return the rest as a function.

        slots: the members' slots. lengths: tokens of their sequences. behind: output tokens that the draft model has
        not seen, beyond the last two, which every draft feeds.
        """
        device = self.stages.device
        passes = [
            (to_device(members, device), to_device(first, device), Layout.of(counts, device))
            for members, first, counts in cut(slots, lengths, behind)
        ]

        def run() -> None:
            for each in passes:
                self.stages.catch_up(*each)

        return run

    def _run(
        self, segment: Segment, slots: Sequence[int], counts: Sequence[int], k: int, sampling: bool
    ) -> Tensor | None:
        stages = self.stages
        members = to_device(slots, stages.device)
        match segment:
            case Segment.PREFILL_DRAFT:
                stages.prefill_draft(members, Layout.of(counts, stages.device))
                return None
            case Segment.PREFILL_TARGET:
                return to_host(stages.prefill_target(members, Layout.of(counts, stages.device), sampling))
            case Segment.DRAFT:
                return to_host(stages.draft(members, k, sampling))
            case Segment.VERIFY:
                return to_host(stages.verify(members, k, sampling))
