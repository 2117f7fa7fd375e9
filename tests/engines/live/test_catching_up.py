"""Draft lengths that fall to 0 and rise again: the draft model catches up, and no token changes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from engines.live.model.attention import Layout
from engines.live.model.eager import EagerRunner, cut
from engines.live.model.graphs import GraphRunner
from engines.live.model.pairs import Pair, load_pair
from engines.live.model.stages import Stages
from engines.live.serving.cache_check import check_engine
from engines.live.serving.engine import LiveEngine
from engines.live.serving.serve import serve
from engines.policy.architecture import BASELINE, PD, PDV, Architecture, Step
from engines.policy.draft_length import LoadAdaptiveDraftLength
from engines.policy.load_adaptive import Load, LoadAdaptiveController
from engines.policy.request import Request
from engines.policy.segment_shape import CATCH_UP_TOKENS
from engines.workload.workload import Workload
from tests.engines.live.conftest import random_requests
from tests.engines.live.test_lossless import collect, served
from tests.engines.step_times import Formula

RULE = LoadAdaptiveDraftLength(0, 6, 3)
LAYOUTS = [PD, PDV, PDV.replace(hybrid_at_or_below=0, permits=1), BASELINE, PD.with_batch_limits({Step.PREFILL: 3})]


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the controller draw k at random, 0 half of the time."""
    draw = random.Random(5)

    def choose(self: LoadAdaptiveController, load: Load, least: int = 0) -> int:
        return max(least, draw.choice([0, 0, 0, 0, 1, 2, 3, 6]))

    monkeypatch.setattr(LoadAdaptiveController, "choose", choose)


def restless_engine(architecture: Architecture, pair: Pair, **options: bool) -> LiveEngine:
    return LiveEngine(architecture.replace(draft_length=RULE), pair, times=Formula(), **options)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("architecture", LAYOUTS, ids=["pd", "pdv", "pdv, one permit", "baseline", "packed"])
def test_no_token_changes(architecture: Architecture, graphs: bool, pair: Pair) -> None:
    requests = random_requests(20, ignore_eos=False)
    with restless_engine(architecture, pair, graphs=graphs) as engine:
        handles, run = collect(engine, Workload(requests, concurrency=6))
    assert {i: handle.result() for i, handle in handles.items()} == served(PD, pair, requests, 1)
    caught_up = (run.spans["segment"] == "prefill_draft") & (run.spans["step"] != "prefill")
    assert caught_up.sum() > 3
    assert run.requests["accepted"].sum() > 10
    lengths = set(run.steps.loc[run.steps["position"] > 0, "draft_length"])
    assert 0 in lengths
    assert len(lengths) > 2


@pytest.mark.usefixtures("restless")
def test_catching_up_is_captured(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of several sizes, padded to captured ones, and none of them uncaptured."""
    requests = random_requests(20, longest=60)
    expected = served(PD, llama, requests, 1)
    caught: list[int] = []
    ready = GraphRunner.ready_to_catch_up
    monkeypatch.setattr(
        GraphRunner, "ready_to_catch_up",
        lambda self, *args: (caught.append(sum(args[2])), ready(self, *args))[1],
    )  # fmt: skip
    for name in ("_run", "ready_to_catch_up"):
        monkeypatch.setattr(EagerRunner, name, lambda *args: pytest.fail("ran uncaptured"))
    with restless_engine(PD.with_batch_limits({Step.DRAFT_VERIFY: 12}), llama, graphs=True) as engine:
        handles, _ = collect(engine, Workload(requests, concurrency=12))
        scratch = engine.stages.lengths[-1], engine.stages.draft_lengths[-1]
    assert {i: handle.result() for i, handle in handles.items()} == expected
    assert len({size for size in caught if size}) > 3
    assert [int(each) for each in scratch] == [2, 1]


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("architecture", [PD, PDV], ids=lambda a: a.name)
def test_what_is_drafted_after_a_pause_is_as_good_as_before(architecture: Architecture, pair: Pair) -> None:
    """Exact outputs would survive a broken draft cache. Tapes tell: they depend on the true prefix alone."""
    requests = random_requests(14, longest=60)
    with LiveEngine(PD, pair) as engine:
        expected = serve(engine, Workload(requests, concurrency=1)).tapes
    with restless_engine(architecture, pair) as engine:
        tapes = serve(engine, Workload(requests, concurrency=6)).tapes
    known = 0
    for request, tape in tapes.items():
        sure = tape >= 0
        assert (tape[sure] == expected[request][sure]).all()
        known += sure.sum()
    assert known > 150


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("architecture", [PD, PDV], ids=lambda a: a.name)
def test_the_caches_equal_a_recomputation(architecture: Architecture) -> None:
    pair = load_pair("permutation:tiny+tiny-draft:alpha=0.7:scale=0.3")
    draw = random.Random(2)
    prompts = [tuple(draw.randrange(4, 512) for _ in range(draw.randint(1, 40))) for _ in range(10)]
    asked = tuple(Request(i, len(prompt), draw.randint(5, 40), prompt=prompt) for i, prompt in enumerate(prompts))
    reports = []
    with restless_engine(architecture.replace(slots=4), pair) as engine:
        serve(engine, Workload(asked, concurrency=6), lambda done, total: reports.extend(check_engine(engine, 2)))
    assert {report.role for report in reports} == {"target", "draft"}
    assert [failure for report in reports for failure in report.failures] == []


def test_a_cache_that_caught_up_equals_one_that_never_fell_behind(llama: Pair) -> None:
    """Two slots that lack 3 and 5 tokens are filled in by one pass, and one of them again in two passes."""
    prompt = list(range(9, 29))
    with torch.inference_mode():
        whole, late = (Stages(llama, slots=3, max_draft_length=2, max_context=40) for _ in range(2))
        for stages in (whole, late):
            for slot in (0, 2):
                stages.load([slot], [prompt], [0], [0.0])
        whole.prefill_draft(torch.tensor([0, 2]), Layout.of([20, 20], whole.device))
        late.prefill_draft(torch.tensor([0, 2]), Layout.of([17, 15], late.device))
        late.catch_up(torch.tensor([0, 2]), torch.tensor([17, 15]), Layout.of([3, 2], late.device))
        late.catch_up(torch.tensor([2]), torch.tensor([17]), Layout.of([3], late.device))
        for ours, theirs in zip(
            (*late.draft_pool.keys, *late.draft_pool.values), (*whole.draft_pool.keys, *whole.draft_pool.values),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(ours[[0, 2], :20], theirs[[0, 2], :20])
            assert not ours[1].any()


def test_passes_arecut_to_their_size_in_order() -> None:
    behind = [3, 0, CATCH_UP_TOKENS + 10, 1]
    passes = list(cut([7, 8, 9, 4], [50, 50, 600, 30], behind))
    assert [sum(counts) for _, _, counts in passes] == [CATCH_UP_TOKENS, 14]
    seen = [
        (slot, place)
        for slots, firsts, counts in passes
        for slot, first, count in zip(slots, firsts, counts, strict=True)
        for place in range(first, first + count)
    ]
    wanted = [(7, range(45, 48)), (9, range(598 - CATCH_UP_TOKENS - 10, 598)), (4, range(27, 28))]
    assert seen == [(slot, place) for slot, places in wanted for place in places]
    assert list(cut([1, 2], [9, 9], [0, 0])) == []
    assert list(itertools.chain(*cut([1], [9], [4]))) == [[1], [3], [4]]
