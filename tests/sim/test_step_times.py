"""What a draft length that follows the load weighs, and that the live engine would decide the same."""

from __future__ import annotations

import pytest

from calibrate.contention import NoContention
from engines.errors import InputError
from engines.policy.architecture import BASELINE, PD, PDV, Architecture, Segment, Step
from engines.policy.captured_sizes import CapturedSizes, capture_plans
from engines.policy.draft_length import FixedDraftLength, LoadAdaptiveDraftLength
from engines.policy.segment_shape import CATCH_UP_TOKENS
from engines.record.metrics import PARTS, decompose, summary
from sim.acceptance import UNKNOWN, Independent, Tapes
from sim.costs import CostModel
from sim.step_times import MeasuredStepTimes, check_measured, step_times
from tests.calibrate.profiles import duration_ms, host_laws, made_up, stage_costs
from tests.sim.runs import COSTS, OPEN, run, same

RULE = LoadAdaptiveDraftLength()
LAWS = host_laws(before=0.03, per_request=0.01, wake_up=0.05, after=0.02)


def times(architecture: Architecture = PD, sizes: CapturedSizes | None = None) -> MeasuredStepTimes:
    layout = architecture.replace(draft_length=RULE)
    model = CostModel(made_up(host_times=LAWS), extrapolate=True)
    return MeasuredStepTimes(model, layout, capture_plans(layout, 128, sizes))


def ms(segment: Segment, batch: int, k: int, context: float) -> float:
    return duration_ms(segment, batch, k, batch * (k if segment is Segment.DRAFT else k + 1), context)


@pytest.mark.parametrize("k", [0, 2, 5, 8])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_times_are_those_of_the_profile(batch: int, k: int) -> None:
    found = times()
    assert 1e3 * found.verify_s(batch, k, 256) == pytest.approx(ms(Segment.VERIFY, batch, k, 256))
    if k:
        assert 1e3 * found.draft_s(batch, k, 256) == pytest.approx(ms(Segment.DRAFT, batch, k, 256))


def test_a_batch_takes_as_long_as_the_captured_size_that_runs_it() -> None:
    found = times(PD.with_batch_limits({Step.DRAFT_VERIFY: 16}), CapturedSizes((4, 8), (128,)))
    assert 1e3 * found.draft_s(5, 2, 256) == pytest.approx(ms(Segment.DRAFT, 8, 2, 160))  # padding has no context
    assert found.verify_s(9, 0, 256) > found.verify_s(8, 0, 256)


def test_host_time_is_that_of_the_step() -> None:
    for architecture in (PD, PDV):
        assert 1e3 * times(architecture).host_s(4, True, True) == pytest.approx(0.09)
        assert 1e3 * times(architecture).host_s(4, False, True) == pytest.approx(0.09)


def test_catching_up_is_a_prefill_of_the_draft_model_in_passes() -> None:
    one, rest = (duration_ms(Segment.PREFILL_DRAFT, 1, 0, tokens, 0) for tokens in (CATCH_UP_TOKENS, 40))
    assert 1e3 * times().catch_up_s(2 * CATCH_UP_TOKENS + 40) == pytest.approx(2 * one + rest)
    assert times().catch_up_s(0) == 0
    captured = times(sizes=CapturedSizes((4, 8), (64, 128)))
    assert 1e3 * captured.catch_up_s(40) == pytest.approx(duration_ms(Segment.PREFILL_DRAFT, 1, 0, 64, 0))


def test_rates_are_those_of_the_contention_model() -> None:
    """Which shares 1.2 of the made-up device between two streams, in favour of larger kernels."""
    found = times(PDV)
    draft, verify = found.side_by_side(4, 4, 2, 256)
    assert draft + verify == pytest.approx(1.2, rel=0.01)
    assert draft < verify


def test_only_what_follows_the_load_has_times() -> None:
    assert step_times(COSTS, PD, {}) is None
    assert step_times(COSTS, PD.replace(draft_length=LoadAdaptiveDraftLength(minimum=2)), {}) is not None


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ((2, 8), "verify at draft lengths 2 to 8; calibrate from 0 to 8"),
        ((0, 2, 4), "verify at draft lengths 0 to 4; calibrate from 0 to 8"),
        ((0, 8), "draft at draft lengths 8 only; calibrate from 1 to 8"),
        ((0, 1, 8), None),
    ],
)
def test_a_profile_of_other_lengths_is_refused_although_live_engines_extrapolate(
    lengths: tuple[int, ...], says: str | None
) -> None:
    profile = made_up(stage_costs=stage_costs(lengths=lengths))
    check_measured(profile, FixedDraftLength(9))  # weighs nothing
    if says is None:
        check_measured(profile, RULE)
        return
    with pytest.raises(InputError, match=says):
        check_measured(profile, RULE)


@pytest.mark.parametrize("lengths", [(2, 8), (0, 2, 4), (0, 2, 8)])
def test_lengths_that_were_not_measured_are_refused_before_anything_runs(lengths: tuple[int, ...]) -> None:
    costs = CostModel(made_up(stage_costs=stage_costs(lengths=lengths)))
    with pytest.raises(InputError, match=r"(verify|draft) draft_length = (0|1|8)"):
        step_times(costs, PD.replace(draft_length=RULE), {})


@pytest.mark.parametrize("architecture", [BASELINE, PD, PDV], ids=lambda a: a.name)
def test_a_run_is_repeatable_and_adds_up(architecture: Architecture) -> None:
    layout = architecture.replace(draft_length=RULE)
    costs = CostModel(made_up(), extrapolate=True)
    done = run(layout, OPEN, costs, acceptance=Independent(0.5))
    assert same(done, run(layout, OPEN, costs, acceptance=Independent(0.5)))
    parts = decompose(done)
    assert (parts[PARTS].sum(axis=1) - parts["latency_s"]).abs().max() < 1e-9


def test_drafts_that_a_run_never_made_are_drawn_like_those_that_it_made() -> None:
    """A live run that stopped drafting for a while does not know the rest of its tapes."""
    done = run(PD, OPEN, acceptance=Independent(0.6))
    known = Tapes.recorded_by(done)
    assert known.unknown == 0
    for tape in done.tapes.values():
        tape[3:] = UNKNOWN
    assert Tapes.recorded_by(done).unknown == pytest.approx(0.6, abs=0.15)
    for tape in done.tapes.values():
        tape[:] = UNKNOWN
    assert Tapes.recorded_by(done).unknown == 0  # a run without any drafts


def test_it_is_about_as_fast_as_the_best_fixed_length() -> None:
    """Where drafts are seldom right, all that it does is to leave them out, and the other way round."""
    costs = CostModel(made_up(), contention=NoContention(), extrapolate=True)

    def speed(rule: FixedDraftLength | LoadAdaptiveDraftLength, alpha: float) -> float:
        done = run(PD.replace(draft_length=rule), costs=costs, acceptance=Independent(alpha), jitter=False)
        return summary(done)["throughput_tokens_per_s"]

    for alpha in (0.05, 0.5, 0.95):
        fixed = [speed(FixedDraftLength(k), alpha) for k in range(9)]
        assert speed(RULE, alpha) > 0.97 * max(fixed)
        assert max(fixed) > 1.1 * min(fixed)
