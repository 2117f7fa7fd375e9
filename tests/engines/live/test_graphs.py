"""Captured shapes, padded batches and packed prompts give the same tokens. On the CPU a capture is a plain call
over the same places, so what is tested here is what a CUDA graph replays."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from engines.live.device.streams import HostStream
from engines.live.model.graphs import Captured, GraphRunner
from engines.live.model.pairs import Pair
from engines.live.model.stages import Stages
from engines.live.serving.engine import LiveEngine
from engines.live.serving.serve import serve
from engines.policy.architecture import ARCHITECTURES, PD, PDV, Architecture, Segment, Step
from engines.policy.captured_sizes import CapturePlan
from engines.policy.draft_length import AdaptiveDraftLength, FixedDraftLength
from engines.policy.request import Request
from engines.workload.workload import Workload
from tests.engines.live.conftest import random_requests
from tests.engines.live.test_lossless import collect, served


def served_by_graphs(architecture, pair: Pair, requests, concurrency: int, **options):  # type: ignore[no-untyped-def]
    with LiveEngine(architecture, pair, graphs=True, **options) as engine:
        handles, _ = collect(engine, Workload(requests, concurrency=concurrency))
    return {i: handle.result() for i, handle in handles.items()}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_graphs_give_the_same_tokens(name: str, pair: Pair) -> None:
    requests = random_requests(14, ignore_eos=False)
    architecture = ARCHITECTURES[name].with_batch_limits({Step.PREFILL: 3 if name != "baseline" else 1})
    assert served_by_graphs(architecture, pair, requests, 10) == served(ARCHITECTURES[name], pair, requests, 1)


def test_adaptive_draft_lengths_and_samples_are_captured_too(llama: Pair) -> None:
    requests = tuple(dataclasses.replace(r, temperature=0.8 * (r.id % 2)) for r in random_requests(10))
    architecture = PDV.replace(draft_length=AdaptiveDraftLength(1, 4, 2, window=5, every=1))
    assert served_by_graphs(architecture, llama, requests, 6, sampling=True) == served(PDV, llama, requests, 1)


def test_replays_are_used_and_nothing_runs_uncaptured(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[int] = []
    replay = Captured.replay
    monkeypatch.setattr(Captured, "replay", lambda self: (replays.append(1), replay(self))[1])
    monkeypatch.setattr("engines.live.model.eager.EagerRunner._run", lambda *args: pytest.fail("ran uncaptured"))
    served_by_graphs(PDV, llama, random_requests(6), 4)
    assert len(replays) > 50


@pytest.mark.parametrize("architecture", [PD, PDV], ids=lambda a: a.name)
def test_without_drafts_everything_is_captured_but_the_draft_model(
    architecture: Architecture, llama: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = served(PDV, llama, random_requests(6), 1)
    monkeypatch.setattr("engines.live.model.eager.EagerRunner._run", lambda *args: pytest.fail("ran uncaptured"))
    for name in ("prefill_draft", "draft_first", "draft_next"):
        monkeypatch.setattr(Stages, name, lambda *args: pytest.fail("captured the draft model"))
    alone = architecture.replace(draft_length=FixedDraftLength(0))
    assert served_by_graphs(alone, llama, random_requests(6), 4) == expected


def test_the_sequence_of_the_scratch_slot_does_not_grow(llama: Pair) -> None:
    with LiveEngine(PD, llama, graphs=True) as engine:
        serve(engine, Workload(random_requests(20), concurrency=5))
        assert int(engine.stages.lengths[-1]) == 2
        assert int(engine.stages.draft_lengths[-1]) <= engine.stages.max_draft_length


def test_padding_leaves_other_slots_alone(llama: Pair) -> None:
    stages = Stages(llama, slots=8, max_draft_length=4, max_context=64)
    runner = GraphRunner(stages, HostStream(), CapturePlan(6, 6, (4,), prompts=3, tokens=64))
    with torch.inference_mode():
        for slot in range(8):
            stages.load([slot], [[5 + slot] * 6], [0], [0.0])
        runner.capture()
        runner.ready(Segment.PREFILL_DRAFT, [6, 1], [6, 6], 0, False)()
        runner.ready(Segment.PREFILL_TARGET, [6, 1], [6, 6], 0, False)()
        untouched = [0, 2, 3, 4, 5, 7]
        before = [t[untouched].clone() for t in (stages.tokens, stages.lengths, stages.drafts)]
        pools = [t[untouched].clone() for t in (*stages.target_pool.keys, *stages.draft_pool.values)]
        for _ in range(3):
            runner.ready(Segment.DRAFT, [6, 1], [6, 6], 4, False)()
            runner.ready(Segment.VERIFY, [6, 1], [6, 6], 4, False)()
        after = [t[untouched] for t in (stages.tokens, stages.lengths, stages.drafts)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        now = [t[untouched] for t in (*stages.target_pool.keys, *stages.draft_pool.values)]
        assert all(torch.equal(a, b) for a, b in zip(pools, now, strict=True))
        assert stages.lengths[[1, 6]].min() > 7


def test_no_captured_sequence_is_longer_than_a_row(llama: Pair) -> None:
    """Packed prompts can have more tokens than one row of the pool; a kernel that reads past it reads elsewhere."""
    stages = Stages(llama, slots=4, max_draft_length=2, max_context=20)
    runner = GraphRunner(stages, HostStream(), CapturePlan(0, 0, (2,), prompts=4, tokens=80))
    for shape in runner._prefills.values():
        assert int(shape.layout.counts.max()) <= shape.layout.longest <= stages.row_length
        assert int(shape.layout.counts.sum()) == len(shape.layout.owner)
    runner.capture()
    with torch.inference_mode():
        for slot in range(4):
            stages.load([slot], [[5] * 20], [0], [0.0])
        runner.ready(Segment.PREFILL_TARGET, [0, 1, 2], [20, 20, 20], 0, False)()
    assert stages.lengths.tolist() == [21, 21, 21, 20, 2]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 8])
def test_every_draft_length_can_be_captured(k: int, llama: Pair) -> None:
    requests = random_requests(5)
    architecture = PD.replace(draft_length=FixedDraftLength(k))
    assert served_by_graphs(architecture, llama, requests, 3) == served(PD, llama, requests, 1)


def test_capturing_reports_its_progress(llama: Pair) -> None:
    seen: list[tuple[int, int]] = []
    with LiveEngine(PD, llama, graphs=True, progress=lambda done, total: seen.append((done, total))) as engine:
        assert engine.submit(Request(0, 1, 2, prompt=(5,))).result(30)
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
    assert len(seen) > 10
