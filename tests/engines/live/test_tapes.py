"""A tape recorded once predicts every step of every architecture and draft length."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engines.live.model.pairs import Pair
from engines.live.serving.engine import LiveEngine
from engines.live.serving.serve import serve
from engines.policy.architecture import ARCHITECTURES
from engines.policy.draft_length import AdaptiveDraftLength, DraftLength, FixedDraftLength
from engines.policy.request import Emission
from engines.policy.request_state import settle
from engines.record.run import Run
from engines.workload.workload import Workload
from tests.engines.live.conftest import random_requests


def record(pair: Pair, architecture: str, draft_length: DraftLength, temperature: float = 0.0) -> Run:
    requests = tuple(
        dataclasses.replace(r, temperature=temperature, ignore_eos=r.id % 3 > 0) for r in random_requests(16, seed=9)
    )
    with LiveEngine(ARCHITECTURES[architecture].replace(draft_length=draft_length), pair) as engine:
        return serve(engine, Workload(requests, concurrency=5))


def predicted_steps(tape: np.ndarray, k: int, max_tokens: int) -> list[tuple[int, int, int, int, int]]:
    """(position, emitted, accepted, rejected, discarded) of each verify step, from the tape alone."""
    steps, position = [], 1
    while position < len(tape):
        bits = np.append(tape[position : position + k], np.ones(k))[:k]
        matched = int(np.cumprod(bits == 1).sum())
        stop_after = len(tape) - position if len(tape) < max_tokens and matched + 1 >= len(tape) - position else None
        s = settle(Emission(matched, stop_after), k, max_tokens - position)
        steps.append((position, s.emitted, s.accepted, s.rejected, s.discarded))
        position += s.emitted
    return steps


@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "sampled"])
def test_a_tape_of_pd_at_8_predicts_every_step_of_pdv_at_3(pair: Pair, temperature: float) -> None:
    tapes = record(pair, "pd", FixedDraftLength(8), temperature).tapes
    other = record(pair, "pdv", FixedDraftLength(3), temperature)
    limits = other.requests.set_index("request")["max_tokens"]
    verifies = other.steps[other.steps["emitted"].gt(0) & other.steps["draft_length"].gt(0)]
    columns = ["position", "emitted", "accepted", "rejected", "discarded"]
    assert len(verifies) > 50
    for request, tape in tapes.items():
        actual = list(verifies[verifies["request"] == request][columns].itertuples(index=False, name=None))
        assert actual == predicted_steps(tape, 3, int(limits[request])), request


def test_every_way_of_serving_records_the_same_tape(llama: Pair) -> None:
    ways = [("baseline", FixedDraftLength(1)), ("pd", FixedDraftLength(8)), ("pdv", AdaptiveDraftLength(1, 8, 4))]
    tapes = [record(llama, name, length).tapes for name, length in ways]
    for request, tape in tapes[0].items():
        assert all(np.array_equal(tape, other[request]) for other in tapes[1:])
        assert (tape[1:] >= 0).all()


def test_tapes_are_kept_with_the_record(llama: Pair, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = record(llama, "pdv", FixedDraftLength(4))
    again = Run.load(run.save(tmp_path / "run"))
    assert run.tapes.keys() == again.tapes.keys()
    assert all(np.array_equal(run.tapes[i], again.tapes[i]) for i in run.tapes)
    assert (run.requests["output_tokens"] == [len(run.tapes[i]) for i in run.requests["request"]]).all()
