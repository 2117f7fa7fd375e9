"""Random architectures, loads and luck for the scheduler, as hypothesis strategies."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass

from hypothesis import strategies as st

from engines.policy.architecture import BASELINE, PD, PDV, Architecture, Lane, Stage, Step
from engines.policy.batch import Batch, Outcome
from engines.policy.draft_length import AdaptiveDraftLength, FixedDraftLength
from engines.policy.request import Emission, Request
from engines.policy.scheduler import Scheduler
from engines.record.run import Run
from tests.driver import drive
from tests.engines.invariants import Invariants

FOURTH_TOML = """
name = "prefill-drafts"
priority = ["draft", "verify", "prefill"]
slots = 16

[[lanes]]
name = "prefill"
steps = { "prefill" = 1, "draft" = 6 }
stream = 0

[[lanes]]
name = "verify"
steps = { "verify" = 6 }
stream = 1
"""
FOURTH = Architecture.from_dict(tomllib.loads(FOURTH_TOML))


@dataclass(frozen=True)
class Scenario:
    """A load and what happens to it. The cycles are read by batch or by request, so luck never depends on the
    scheduler's choices alone: durations by batch, found (drafts right, tokens until an end of sequence) and
    failures by request and position."""

    architecture: Architecture
    requests: tuple[Request, ...]
    concurrency: int | None
    durations: tuple[float, ...]
    found: tuple[tuple[int, int | None], ...]
    failures: tuple[bool, ...]
    cancel: tuple[tuple[float, int], ...]

    def run(self, scheduler_type: type[Scheduler] = Scheduler) -> Run:
        """Serve it under the eyes of the invariants."""
        scheduler = scheduler_type(self.architecture)
        return drive(
            scheduler,
            self.requests,
            lambda batch: self.durations[batch.id % len(self.durations)],
            cancel=self.cancel,
            outcome=self._outcome,
            concurrency=self.concurrency,
            observer=Invariants(scheduler, self.architecture),
        )

    def _outcome(self, batch: Batch, member: int) -> Outcome:
        state = batch.members[member]
        luck = state.id * 7 + state.emitted * 3 + len(batch.step)
        if self.failures[luck % len(self.failures)]:
            return RuntimeError("made up")
        if batch.step is Step.DRAFT:
            return None
        right, stop_after = self.found[luck % len(self.found)]
        matched = min(right, batch.draft_lengths[member])
        return Emission(matched, stop_after if stop_after is not None and stop_after <= matched + 1 else None)


def adaptive_draft_lengths() -> st.SearchStrategy[AdaptiveDraftLength]:
    return st.builds(
        lambda bounds, every, lower: AdaptiveDraftLength(
            bounds[0], bounds[2], bounds[1], window=5, every=every, lower_below=lower, short_queue=1, long_queue=3
        ),
        st.tuples(*[st.integers(1, 8)] * 3).map(sorted),
        st.integers(1, 3),
        st.sampled_from([0.2, 0.6]),
    )


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Three built-in architectures and a fourth one, with other limits, workers, slots, permits and rules."""
    base = draw(st.sampled_from([PDV, FOURTH, PD, BASELINE]))
    lanes = tuple(draw(_lanes(lane)) for lane in base.lanes)
    of = {step: lane for lane in lanes for step in lane.steps}
    dynamic = Step.VERIFY in of
    hybrid = dynamic and of[Step.DRAFT].device == of[Step.VERIFY].device
    priority = draw(st.sampled_from([base.priority, (Stage.PREFILL, Stage.DRAFT, Stage.VERIFY), ()]))
    return base.replace(
        lanes=lanes,
        priority=priority,
        verify_first_above=draw(st.sampled_from([0, 1, 2, 3, None])) if dynamic and priority else None,
        hybrid_at_or_below=draw(st.integers(0, 4)) if hybrid else 0,
        draft_length=draw(st.integers(0, 8).map(FixedDraftLength) | adaptive_draft_lengths()),
        slots=draw(st.integers(1, 10)),
        permits=draw(st.sampled_from([1, 1, 2, 3, None])),
        queue_limit=draw(st.none() | st.integers(1, 4)),
    )


def _lanes(lane: Lane) -> st.SearchStrategy[Lane]:
    limits = st.just(1) if lane.run_to_completion else st.integers(1, 4)
    return st.builds(
        lambda steps, workers, device: dataclasses.replace(lane, steps=steps, workers=workers, device=device),
        st.fixed_dictionaries(dict.fromkeys(lane.steps, limits)),
        st.integers(1, 6 if lane.run_to_completion else 2),
        st.sampled_from([0, 0, 1]),
    )


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    count = draw(st.integers(1, 12))
    instants = st.integers(0, 8).map(float)  # whole numbers, so that events coincide
    requests = tuple(
        Request(i, draw(st.integers(1, 50)), draw(st.integers(1, 16)), draw(instants)) for i in range(count)
    )
    concurrency = draw(st.none() | st.integers(1, count))
    if concurrency is not None:
        requests = tuple(dataclasses.replace(request, arrival_s=None) for request in requests)
    rarely = st.integers(0, 15).map(lambda n: n == 15)
    return Scenario(
        draw(architectures()),
        requests,
        concurrency,
        durations=tuple(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 5.0]), min_size=1, max_size=8))),
        found=tuple(
            draw(st.lists(st.tuples(st.integers(0, 8), st.none() | st.integers(1, 9)), min_size=1, max_size=8))
        ),
        failures=tuple(draw(st.lists(rarely, min_size=1, max_size=8))),
        cancel=tuple(draw(st.lists(st.tuples(instants, st.integers(0, count)), max_size=3))),
    )
