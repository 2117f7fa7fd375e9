"""What a simulated request emits: tapes, stops and the context limit."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from engines.errors import InputError
from engines.policy.architecture import ARCHITECTURES, PD, PDV, Architecture
from engines.policy.draft_length import FixedDraftLength
from engines.policy.request import Request
from engines.workload.workload import FixedLength, Workload, make_workload
from sim.acceptance import (
    AcceptanceSource,
    Independent,
    Markov,
    PerPosition,
    PerRequestSpread,
    RequestAcceptance,
    Tapes,
)
from tests.sim.runs import CLOSED, OPEN, run, same


def test_a_simulated_tape_replays_for_another_architecture_and_draft_length() -> None:
    """Drafts right at a position are right at any k: step by step, PDV at k = 3 follows the tape PD left at k = 8."""
    recorded = run(PD.replace(draft_length=FixedDraftLength(8)), OPEN)
    replayed = run(PDV.replace(draft_length=FixedDraftLength(3)), OPEN, acceptance=Tapes(recorded.tapes))
    original = run(PDV.replace(draft_length=FixedDraftLength(3)), OPEN)
    assert same(replayed, original)
    for row in replayed.steps[replayed.steps["emitted"] > 0].itertuples():
        ahead = recorded.tapes[row.request][row.position : row.position + row.draft_length]
        expected = int(np.argmin(ahead)) if (ahead == 0).any() else len(ahead)
        assert row.accepted == expected or row.position == 0


def test_a_recorded_output_that_stopped_early_stops_there() -> None:
    tape = np.array([-1, 1, 1, 0, 1, 1, 1], dtype=np.int8)
    workload = Workload((Request(0, 30, 50, 0.0), Request(1, 30, 50, 0.0)))
    done = run(PD, workload, acceptance=Tapes({0: tape, 1: tape[:1]}, ended=frozenset({0, 1})))
    assert done.requests["output_tokens"].tolist() == [7, 1]
    assert done.requests["finish_reason"].tolist() == ["stop", "stop"]
    assert done.steps[done.steps["request"] == 0]["emitted"].tolist() == [1, 3, 3]


def test_a_tape_shorter_than_the_output_is_refused_before_anything_runs() -> None:
    """Nobody knows what would have come after the end of a tape that a limit cut."""
    tape = np.array([-1, 1, 1, 0], dtype=np.int8)
    workload = Workload((Request(0, 30, 4, 0.0), Request(1, 30, 5, 0.0)))
    seen: list[tuple[int, int]] = []
    message = r"request 1 asks for 5 output tokens and its tape has 4: ask for at most 4, or use another acceptance"
    with pytest.raises(InputError, match=message):
        run(PD, workload, acceptance=Tapes({0: tape, 1: tape}), progress=lambda *done: seen.append(done))
    assert seen == []
    cut = run(PD, workload, acceptance=Tapes({0: tape, 1: tape}), max_context=34)  # leaves room for four
    assert cut.requests["finish_reason"].tolist() == ["length", "context"]


def test_the_tapes_of_a_run_know_which_outputs_ended_by_themselves() -> None:
    tape = np.array([-1, 1, 1, 0], dtype=np.int8)
    workload = Workload((Request(0, 30, 9, 0.0), Request(1, 30, 4, 0.0)))
    recorded = run(PD, workload, acceptance=Tapes({0: tape, 1: tape}, ended=frozenset({0})))
    assert Tapes.recorded_by(recorded).ended == {0}
    assert same(run(PD, workload, acceptance=Tapes.recorded_by(recorded)), recorded)


def test_context_limit_cuts_outputs_and_refuses_prompts_that_leave_no_room() -> None:
    workload = Workload((Request(0, 30, 50, 0.0), Request(1, 60, 50, 0.0), Request(2, 64, 50, 0.0)))
    done = run(PD, workload, max_context=64).requests
    assert done["output_tokens"].tolist() == [34, 4, 0]
    assert done["finish_reason"].tolist() == ["context", "context", "rejected"]
    assert "64" in done["error"][2]


BITS = np.random.default_rng(3).integers(-1, 2, (60, 60)).astype(np.int8)


SOURCES: list[AcceptanceSource] = [
    Independent(0.9),
    PerPosition((0.9, 0.8)),
    Markov(0.9, 0.5),
    PerRequestSpread(0.8, 0.1),
    Tapes(
        {r.id: BITS[r.id, : max(1, r.max_tokens - 9)] for r in CLOSED.requests},
        0.7,
        ended=frozenset(r.id for r in CLOSED.requests),
    ),
]


@dataclass(frozen=True)
class Uncut:
    """A source that knows everything of a request, whatever can be emitted of it."""

    source: AcceptanceSource

    def acceptance(self, request: Request, seed: int, tokens: int | None = None) -> RequestAcceptance:
        return self.source.acceptance(request, seed)

    def describe(self) -> dict[str, Any]:
        return self.source.describe()


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
def test_what_a_context_limit_cuts_off_is_never_missed(architecture: Architecture, source: AcceptanceSource) -> None:
    cut, uncut = (run(architecture, acceptance=given, max_context=220) for given in (source, Uncut(source)))
    assert (cut.requests["finish_reason"] == "context").any()
    assert same(cut, uncut)
    assert {i: tape.tolist() for i, tape in cut.tapes.items()} == {i: t.tolist() for i, t in uncut.tapes.items()}


def test_outputs_that_are_cut_take_the_memory_of_what_is_emitted() -> None:
    workload = make_workload(2, FixedLength(20), FixedLength(10_000_000), concurrency=2)
    tracemalloc.start()
    try:
        done = run(PD, workload, max_context=100)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert done.requests["output_tokens"].tolist() == [80, 80]
