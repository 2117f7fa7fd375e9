"""Segments of work run as they are: every batch exactly as large as it is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from engines.architecture import Segment
from engines.live.attention import Layout
from engines.live.host import to_device, to_host
from engines.live.stages import Stages


class EagerRunner:
    """Calls the stages. Used in a stream's turn; engines.live.graphs has the runner that replays instead."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages

    def run(
        self, segment: Segment, slots: Sequence[int], counts: Sequence[int], k: int, sampling: bool
    ) -> Tensor | None:
        """Run a segment. slots: the members' slots; counts: their prompt lengths (prefill); k: the largest draft
        length among them. Returns what the stage returns, [batch, ...], on the host and complete once the stream
        has passed this point; None where it returns nothing."""
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
