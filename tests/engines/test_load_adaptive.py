"""The draft length that follows the load: what it chooses, learns and remembers."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import InputError
from engines.policy.architecture import BASELINE, PD, PDV, Architecture, Step
from engines.policy.batch import Batch
from engines.policy.draft_length import FixedDraftLength, LoadAdaptiveDraftLength
from engines.policy.load_adaptive import Load, LoadAdaptiveController
from engines.policy.request import Request
from engines.policy.scheduler import Scheduler
from engines.record.metrics import PARTS, decompose
from engines.record.run import Run
from tests.driver import drive
from tests.engines.scenarios import Scenario, scenarios
from tests.engines.step_times import Formula

RULE = LoadAdaptiveDraftLength()


def controller(times: Formula | None = None, limit: int = 64, **rule: Any) -> LoadAdaptiveController:
    return LoadAdaptiveController(LoadAdaptiveDraftLength(**rule), times or Formula(), limit)


def whole(batch: int, behind: int = 0) -> Load:
    """A batch of an architecture that drafts and verifies in one step."""
    return Load(batch, 0, 100.0, behind, True, False)


def learn(who: LoadAdaptiveController, alpha: float, verifications: int = 500, k: int = 4) -> LoadAdaptiveController:
    draw = random.Random(1)
    for _ in range(verifications):
        accepted = next((i for i in range(k) if draw.random() >= alpha), k)
        who.observe(k, accepted, 0)
    return who


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("batch", [1, 10, 40, 64, 200])
def test_it_takes_the_k_with_the_most_expected_tokens_per_second(alpha: float, batch: int) -> None:
    who = learn(controller(Formula(step_s=5e-4), margin=0.0), alpha)
    a = who.acceptance
    assert a == pytest.approx(alpha, abs=0.03)

    def tokens_per_s(k: int) -> float:
        seconds = 5e-4 + k * 1e-3 + max(5e-3, batch * (k + 1) * 4e-5)
        return batch * sum(a**i for i in range(k + 1)) / seconds

    assert who.rates(whole(batch))[3] == pytest.approx(tokens_per_s(3))
    assert who.choose(whole(batch)) == max(range(9), key=tokens_per_s)


def test_times_are_looked_up_once_for_about_the_same_load() -> None:
    """They depend on the context, rounded to 32 tokens, and on everything else in the load, but not on acceptance."""

    @dataclass
    class Counting(Formula):
        asked: int = 0

        def verify_s(self, batch: int, k: int, context_tokens: float) -> float:
            self.asked += 1
            return super().verify_s(batch, k, context_tokens) + context_tokens * 1e-5

    times = Counting()
    who = controller(times)
    first = who.rates(whole(8))
    assert first[0] == pytest.approx(8 / (5e-3 + 96e-5))  # 100 tokens count as 96
    assert who.rates(whole(8)._replace(context_tokens=110.0, beside=3)) == first
    assert learn(who, 0.3).rates(whole(8)) != first
    assert times.asked == 9
    others = [whole(9), whole(8, behind=1), whole(8)._replace(context_tokens=120.0), whole(8)._replace(whole=False)]
    for other in others:
        who.rates(other)
    assert times.asked == 9 * (1 + len(others))


def test_it_drafts_less_the_more_requests_there_are_and_the_less_is_accepted() -> None:
    chosen = {
        alpha: [learn(controller(), alpha).choose(whole(batch)) for batch in (1, 16, 32, 64, 128)]
        for alpha in (0.9, 0.6, 0.3)
    }
    for lengths in chosen.values():
        assert lengths == sorted(lengths, reverse=True)
    assert chosen[0.9][0] > 4
    assert chosen[0.3][-1] == 0
    assert all(more >= fewer for more, fewer in zip(chosen[0.9], chosen[0.3], strict=True))


def test_drafts_behind_a_rejected_one_and_beyond_the_end_say_nothing() -> None:
    who = controller(prior=0.5, prior_drafts=2)
    who.observe(4, 1, 0)  # one right, one wrong
    who.observe(2, 2, 0)  # two right, and the output ended
    who.observe(0, 0, 0)
    assert who.acceptance == pytest.approx((1 + 1 + 2) / (2 + 2 + 2))


def test_it_forgets_what_left_the_window_but_not_the_prior() -> None:
    who = learn(learn(controller(window=50), 0.2), 0.9)
    assert who.acceptance > 0.8
    exact = controller(window=3, prior=1.0, prior_drafts=1)
    for _ in range(10):
        exact.observe(1, 0, 0)
    assert exact.acceptance == pytest.approx(1 / 4)


def test_all_drafts_right_is_no_division_by_zero() -> None:
    assert controller(prior=1.0).rates(whole(1))[8] == pytest.approx(9 / 13e-3)


def test_what_the_draft_model_has_not_seen_must_pay_back() -> None:
    who = learn(controller(payback=10), 0.8)
    who.chose(0)
    assert who.choose(whole(20)) > 0
    assert who.choose(whole(20, behind=20_000)) == 0
    assert who.rates(whole(20, behind=500))[2] == pytest.approx(
        20 * sum(who.acceptance**i for i in range(3)) / (2e-3 + 5e-3 + 6e-3 / 10)
    )
    assert who.rates(whole(20, behind=500))[0] == who.rates(whole(20))[0]


def test_a_change_from_or_to_zero_needs_a_margin() -> None:
    """At this batch, drafting gains little."""
    times = Formula(row_s=6e-5)
    who = learn(controller(times, margin=0.0), 0.5)
    batch = next(n for n in range(1, 300) if who.choose(whole(n)) == 0) - 1
    reluctant = learn(controller(times, margin=0.5), 0.5)
    reluctant.chose(0)
    assert who.choose(whole(batch)) > 0
    assert reluctant.choose(whole(batch)) == 0
    reluctant.chose(3)
    assert reluctant.choose(whole(batch + 1)) > 0


def test_of_lengths_that_are_about_as_good_the_shortest_is_taken() -> None:
    exact, content = (learn(controller(margin=margin), 0.8) for margin in (0.0, 0.05))
    load = whole(8)
    rates = exact.rates(load)
    best = max(range(9), key=rates.__getitem__)
    assert exact.choose(load) == best
    chosen = content.choose(load)
    assert 0 < chosen < best
    assert rates[chosen] * 1.05 >= rates[best] > rates[chosen - 1] * 1.05
    assert content.choose(load, least=2) == max(chosen, 2)


def test_after_a_while_without_drafts_it_tries_some() -> None:
    who = learn(controller(probe_every=5), 0.1)
    for _ in range(2):
        for _ in range(5):
            k = who.choose(whole(64))
            assert k == 0
            who.chose(k)
        assert who.choose(whole(64)) > 0
        who.chose(1)
    never = learn(controller(probe_every=0), 0.1)
    for _ in range(1000):
        never.chose(0)
    assert never.choose(whole(64)) == 0


def test_two_lanes_are_as_fast_as_the_busier_one() -> None:
    who = learn(controller(Formula(rate=1.0)), 0.8)
    emitted = sum(who.acceptance**i for i in range(5))
    both = Load(8, 8, 100.0, 0, False, True)
    assert who.rates(both)[4] == pytest.approx(16 * emitted / 10e-3)  # two verifies of 5 ms; drafts take 4 ms each
    assert who.rates(both)[0] == pytest.approx(16 / 5e-3)  # all in one verify
    alone = Load(16, 0, 100.0, 0, False, True)
    assert who.rates(alone)[4] == pytest.approx(16 * emitted / 9e-3)
    in_turn = Load(8, 8, 100.0, 0, False, False)
    assert who.rates(in_turn)[4] == pytest.approx(8 * emitted / 9e-3)
    assert who.rates(in_turn)[0] == pytest.approx(8 / 5e-3)
    slow = learn(controller(Formula(rate=0.5)), 0.8)
    assert slow.rates(both)[4] == pytest.approx(16 * emitted / 18e-3)  # 8 ms and 8 ms at half speed, then 2 ms alone
    few = learn(controller(Formula(rate=1.0), limit=10), 0.8)
    assert few.rates(both)[0] == pytest.approx(10 / 5e-3)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("minimum", {"minimum": -1}),
        ("maximum", {"maximum": 0, "start": 0}),
        ("minimum, start, maximum", {"start": 9}),
        ("window", {"window": 0}),
        ("prior", {"prior": 1.5}),
        ("margin", {"margin": True}),
        ("payback", {"payback": 0}),
        ("probe_every", {"probe_every": 0.5}),
    ],
)
def test_a_bad_setting_is_named(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        LoadAdaptiveDraftLength(**values)
    assert caught.value.field == f"draft_length.{field}"


def test_it_is_a_value_of_an_architecture() -> None:
    architecture = PD.replace(draft_length=LoadAdaptiveDraftLength(1, 5, 2, probe_every=9))
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    given = Architecture.from_dict({**PD.to_dict(), "draft_length": {"follows": "load", "maximum": 6}})
    assert given.draft_length == LoadAdaptiveDraftLength(maximum=6)
    with pytest.raises(InputError, match=r"draft_length\.follows = 'luck': use \"load\""):
        Architecture.from_dict({**PD.to_dict(), "draft_length": {"follows": "luck"}})


def test_without_times_there_is_nothing_to_weigh() -> None:
    with pytest.raises(InputError, match="draft_length = 'load0-8': it weighs measured stage costs; give a profile"):
        Scheduler(PD.replace(draft_length=RULE))


# --- in a scheduler -----------------------------------------------------------------------------------------


def serve(architecture: Architecture, clients: int = 12, count: int = 40, alpha: float = 0.7, **times: Any) -> Run:
    device = Formula(**times)
    draw = random.Random(3)
    right = [[draw.random() < alpha for _ in range(60)] for _ in range(count)]

    def matched(request: int, position: int, k: int) -> int:
        return next((i for i in range(k) if not right[request][position + i]), k)

    def duration(batch: Batch) -> float:
        k, n = max(batch.draft_lengths), len(batch.members)
        if batch.step is Step.PREFILL:
            return 4e-3
        draft, verify = device.draft_s(n, k, 0) if k else 0.0, device.verify_s(n, k, 0)
        return {Step.DRAFT: draft, Step.VERIFY: verify, Step.DRAFT_VERIFY: draft + verify}[batch.step]

    requests = [Request(i, 10, 40) for i in range(count)]
    scheduler = Scheduler(architecture, times=device)
    return drive(scheduler, requests, duration, concurrency=clients, matched=matched)


@settings(deadline=None)
@given(scenario=scenarios(), lengths=st.lists(st.sampled_from([0, 0, 1, 3, 8]), min_size=1, max_size=7))
def test_whatever_is_chosen_every_request_ends_and_every_second_is_accounted_for(
    scenario: Scenario, lengths: list[int]
) -> None:
    architecture = scenario.architecture.replace(draft_length=RULE)
    scheduler, turns = Scheduler(architecture, times=Formula()), itertools.cycle(lengths)
    assert scheduler._weighs is not None
    scheduler._weighs.choose = lambda load, least: max(next(turns), least)  # type: ignore[method-assign]
    run = drive(
        scheduler, scenario.requests, lambda batch: scenario.durations[batch.id % len(scenario.durations)],
        cancel=scenario.cancel, outcome=scenario._outcome, concurrency=scenario.concurrency,
    )  # fmt: skip
    assert scheduler.idle
    assert sorted(run.requests["request"]) == [request.id for request in scenario.requests]
    assert (run.requests["drafted"] == run.requests[["accepted", "rejected", "discarded"]].sum(axis=1)).all()
    assert run.steps["draft_length"].isin([0, *lengths, 1]).all()
    parts = decompose(run)
    assert (parts[PARTS].sum(axis=1) - parts["latency_s"]).abs().max() < 1e-9 or parts.empty
    assert (parts >= -1e-9).all(axis=None)


WIDE = {Step.DRAFT: 64, Step.VERIFY: 64, Step.DRAFT_VERIFY: 64}


@pytest.mark.parametrize("architecture", [PD, PDV, BASELINE], ids=lambda a: a.name)
@pytest.mark.parametrize("row_s", [4e-5, 1e-3], ids=["cheap rows", "dear rows"])
def test_every_request_is_served_and_every_second_accounted_for(architecture: Architecture, row_s: float) -> None:
    run = serve(architecture.replace(draft_length=RULE), row_s=row_s)
    assert (run.requests["output_tokens"] == 40).all()
    assert (run.requests["drafted"] == run.requests[["accepted", "rejected", "discarded"]].sum(axis=1)).all()
    parts = decompose(run)
    assert (parts[PARTS].sum(axis=1) - parts["latency_s"]).abs().max() < 1e-9
    used = Counter(run.steps.loc[run.steps["emitted"] > 0, "draft_length"])
    assert used[0] > 40 if row_s == 1e-3 and architecture is not BASELINE else used.total() > used[0]


@pytest.mark.parametrize("clients", [2, 12, 40])
def test_it_is_about_as_fast_as_the_best_fixed_length(clients: int) -> None:
    wide = PD.with_batch_limits(WIDE)
    count = max(60, 5 * clients)
    fixed = [
        serve(wide.replace(draft_length=FixedDraftLength(k)), clients, count, row_s=1.5e-4).duration_s
        for k in range(9)
    ]
    follows = serve(wide.replace(draft_length=RULE), clients, count, row_s=1.5e-4).duration_s
    assert follows < 1.03 * min(fixed)
    assert min(fixed) < 0.9 * max(fixed)


def test_what_the_draft_model_has_not_seen_is_counted_and_caught_up_with() -> None:
    """A controller that alternates: two steps without drafts, then one with three."""
    scheduler = Scheduler(PD.replace(draft_length=RULE), times=Formula())
    turns = iter([0, 0, 3] * 20)
    scheduler._weighs.choose = lambda load, least: next(turns)  # type: ignore[union-attr, method-assign]
    shapes: list[list[tuple[str, int]]] = []

    def note(_: Scheduler, started: list[Batch]) -> None:
        shapes.extend([(str(s.segment), s.tokens) for s in batch.shapes] for batch in started)

    drive(scheduler, [Request(0, 10, 14)], lambda _: 1.0, concurrency=1, on_event=note, matched=lambda *_: 1)
    alone, drafting = [("verify", 1)], [("prefill_draft", 2), ("draft", 3), ("verify", 4)]
    assert shapes[0] == [("prefill_draft", 10), ("prefill_target", 10)]
    assert shapes[1:7] == [alone, alone, drafting] * 2


def test_a_smaller_group_gives_up_drafts_to_join_the_others_where_one_batch_is_faster() -> None:
    who = learn(controller(Formula(rate=0.8)), 0.8)
    joins = Load(4, 12, 100.0, 0, False, True, joins=True)
    assert who.choose(joins._replace(joins=False)) > 0
    assert who.choose(joins) == 0
    together = Load(16, 0, 100.0, 0, False, True)
    assert who.rates(joins)[0] == max(who.rates(together))
    assert who.choose(joins._replace(batch=12, beside=4)) > 0
    balanced = learn(controller(Formula(one_draft_s=2.5e-3, row_s=1e-6, rate=1.0), maximum=2, start=2), 0.8)
    assert balanced.choose(joins) == 2  # two lanes that share nothing and are equally busy


def test_two_lanes_join_their_groups_and_are_faster_than_with_any_fixed_length() -> None:
    """A fixed length above 0 keeps groups apart; a step without drafts joins them."""
    wide, times = PDV.with_batch_limits(WIDE), {"one_draft_s": 5e-4, "rate": 0.9}
    fixed = {k: serve(wide.replace(draft_length=FixedDraftLength(k)), 4, 80, **times) for k in range(9)}
    follows = serve(wide.replace(draft_length=RULE), 4, 80, **times)
    assert follows.duration_s < 0.95 * min(run.duration_s for run in fixed.values())
    sizes = [run.spans.loc[run.spans["segment"] == "draft", "batch_size"].mean() for run in (follows, fixed[4])]
    assert sizes[0] > 1.3 * sizes[1]
