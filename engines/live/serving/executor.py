"""Run one step for the members of a batch on a stream, and read its results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engines.live.device.streams import Stream, timed
from engines.live.model.eager import EagerRunner
from engines.live.model.stages import Stages
from engines.live.model.verification import request_keys
from engines.policy.architecture import Segment
from engines.policy.batch import Outcome
from engines.policy.request import Emission, Request
from engines.policy.request_state import RequestState
from engines.record.run import SegmentTime


@dataclass(frozen=True)
class Found:
    """The result of a step for one member.

    outcome: for the scheduler. tokens: the target's. draft_agrees: whether the draft model would have proposed the
    last token before the step; None if it was not asked.
    """

    outcome: Outcome
    tokens: Sequence[int] = ()
    draft_agrees: bool | None = None


class Executor:
    """Runs steps on one stream. Threads may share it."""

    def __init__(self, stages: Stages, stream: Stream, runner: EagerRunner) -> None:
        self.stages, self.stream, self.runner = stages, stream, runner

    def execute(
        self, segments: Sequence[Segment], members: list[RequestState]
    ) -> tuple[list[Found], list[SegmentTime]]:
        """Run the segments of a step. Their times are on the clock of time.perf_counter.

        A step that raises is run again for each member alone, so that only the faulty request fails. This is safe
        because a step changes nothing that matters until it has succeeded.
        """
        try:
            return self._run(segments, members)
        except Exception as error:
            if len(members) == 1:
                return [Found(error)], []
        alone = [self.execute(segments, [member]) for member in members]
        return [found[0] for found, _ in alone], [time for _, times in alone for time in times]

    def _run(self, segments: Sequence[Segment], members: list[RequestState]) -> tuple[list[Found], list[SegmentTime]]:
        slots = [state.slot for state in members if state.slot is not None]
        counts = [state.request.prompt_tokens for state in members]
        k = max(state.draft_length for state in members)
        sampling = any(state.request.temperature > 0 for state in members)

        def ready() -> list[Callable[[], Tensor | None]]:
            if Segment.PREFILL_TARGET in segments:
                self._load(members)
            elif Segment.PREFILL_DRAFT in segments:
                lengths, behind = [state.context_tokens for state in members], [state.behind for state in members]
                catch_up = self.runner.ready_to_catch_up(slots, lengths, behind)
                rest = [self.runner.ready(segment, slots, counts, k, sampling) for segment in segments[1:]]
                return [catch_up, *rest]
            return [self.runner.ready(segment, slots, counts, k, sampling) for segment in segments]

        results, times = timed(self.stream, ready)
        pairs = zip(segments, itertools.pairwise(times), strict=True)
        values = {s: result.tolist() for s, result in zip(segments, results, strict=True) if result is not None}
        return self._read(members, values), [SegmentTime(segment, *pair) for segment, pair in pairs]

    def _load(self, members: list[RequestState]) -> None:
        requests = [state.request for state in members]
        self.stages.load(
            [state.slot for state in members if state.slot is not None],
            [request.prompt or () for request in requests],
            request_keys([request.seed for request in requests], [request.id for request in requests]),
            [request.temperature for request in requests],
        )

    def _read(self, members: list[RequestState], values: dict[Segment, list[Any]]) -> list[Found]:
        draft_agrees = values.get(Segment.DRAFT, [None] * len(members))
        if Segment.VERIFY in values:
            steps = [(matched, picked[: matched + 1]) for matched, *picked in values[Segment.VERIFY]]
        elif Segment.PREFILL_TARGET in values:
            steps = [(0, [token]) for token in values[Segment.PREFILL_TARGET]]
        else:
            return [Found(None, (), agrees) for agrees in draft_agrees]
        return [
            Found(Emission(matched, self._stop_after(state.request, tokens)), tokens, agrees)
            for state, (matched, tokens), agrees in zip(members, steps, draft_agrees, strict=True)
        ]

    def _stop_after(self, request: Request, tokens: Sequence[int]) -> int | None:
        if request.ignore_eos:
            return None
        ends = self.stages.pair.end_tokens
        return next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
