"""Run segments eagerly, with every batch at its exact size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from engines.live.device.host import to_device, to_host
from engines.live.model.attention import Layout
from engines.live.model.stages import Stages
from engines.policy.architecture import Segment


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
