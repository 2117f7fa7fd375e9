"""Segments of work run as they are: every batch exactly as large as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from engines.live.device.host import to_device, to_host
from engines.live.model.attention import Layout
from engines.live.model.stages import Stages
from engines.policy.architecture import Segment


class EagerRunner:
    """Calls the stages. Used in a stream's turn; engines.live.model.graphs has the runner that replays instead."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages

    def ready(
        self, segment: Segment, slots: Sequence[int], counts: Sequence[int], k: int, sampling: bool
    ) -> Callable[[], Tensor | None]:
        """Do all of a segment that the host can do beforehand, and return the rest, to be called in the same turn.

        slots: the members' slots; counts: their prompt lengths (prefill); k: the largest draft length among them.
        The call returns what the stage returns, [batch, ...], on the host and complete once the stream has passed
        this point; None where it returns nothing."""
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
