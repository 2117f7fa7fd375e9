"""Costs meet the measured points, are linear between them, and refuse what was not measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from calibrate.contention import NoContention
from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import Segment, Step
from engines.policy.segment_shape import SegmentShape
from sim.costs import CostModel
from tests.calibrate.profiles import INFO, SPREAD, duration_ms, host_laws, made_up, stage_costs

POINT = SegmentShape.verify(4, 2, 512)


@pytest.fixture(scope="module")
def model() -> CostModel:
    return CostModel(made_up())


def decode(segment: Segment, batch: int, k: int, context: float) -> SegmentShape:
    return (SegmentShape.draft if segment is Segment.DRAFT else SegmentShape.verify)(batch, k, context)


def prompts(batch: int, tokens: int) -> SegmentShape:
    return SegmentShape.prefill(Segment.PREFILL_TARGET, batch, tokens)


def linear_s(shape: SegmentShape) -> float:
    return duration_ms(*shape) / 1e3


def test_every_measured_point_is_met(model: CostModel) -> None:
    for row in made_up().stage_costs.itertuples():
        cost = model.cost(SegmentShape(Segment(row.segment), *row[2:6]))
        assert cost.duration_s == pytest.approx(row.mean_ms / 1e3)
        assert cost.kernel_ms == pytest.approx(row.mean_ms / row.kernels)


def test_packed_prompts_are_met_at_their_tokens_in_all() -> None:
    """Four prompts of 128 tokens are the point that was measured with four prompts and 512 tokens."""
    costs = stage_costs()
    alone = costs[costs["segment"].str.startswith("prefill")]
    times = [column for column in costs if column.endswith("_ms")]
    packed = alone.assign(batch_size=4).assign(**{c: alone[c] * 3 for c in times})
    model = CostModel(made_up(stage_costs=pd.concat([costs, packed])))
    for row in pd.concat([alone, packed]).itertuples():
        cost = model.cost(SegmentShape.prefill(Segment(row.segment), row.batch_size, row.tokens))
        assert cost.duration_s == pytest.approx(row.mean_ms / 1e3)
    between = duration_ms(Segment.PREFILL_TARGET, 1, 0, 900, 0) * (1 + 2 / 3 * (3 - 1)) / 1e3
    assert model.cost(prompts(3, 900)).duration_s == pytest.approx(between)


def test_host_time_grows_with_the_batch_the_waking_and_what_the_host_does_beside() -> None:
    laws = host_laws(before=0.1, per_request=0.01, wake_up=0.2, beside=0.3, after=0.05)
    model = CostModel(made_up(host_times=laws))
    for step in Step:
        assert model.host_s(step, 1, back_to_back=True, beside=0) == pytest.approx((0.11e-3, 0.05e-3))
        assert model.host_s(step, 4, back_to_back=False, beside=2) == pytest.approx((0.94e-3, 0.05e-3))


@pytest.mark.parametrize("segment", [Segment.DRAFT, Segment.VERIFY])
@pytest.mark.parametrize(("batch", "k", "context"), [(1, 2, 64), (3, 5, 300.5), (10, 7, 1000), (16, 8, 2048)])
def test_between_points_linear_costs_are_met_exactly(
    model: CostModel, segment: Segment, batch: int, k: int, context: float
) -> None:
    shape = decode(segment, batch, k, context)
    assert model.cost(shape).duration_s == pytest.approx(linear_s(shape))


def test_points_that_were_left_out_are_filled_in() -> None:
    costs = stage_costs()
    missing = (costs["batch_size"] == 16) & (costs["draft_length"] == 8) & (costs["context_tokens"] > 64)
    model = CostModel(made_up(stage_costs=costs[~missing]))
    for segment in (Segment.DRAFT, Segment.VERIFY):
        shape = decode(segment, 16, 8, 2048)
        assert model.cost(shape).duration_s == pytest.approx(linear_s(shape), rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (SegmentShape.verify(18, 4, 512), "batch_size"),
        (SegmentShape.verify(4, 9, 512), "draft_length"),
        (SegmentShape.draft(4, 1, 512), "draft_length"),
        (SegmentShape.draft(4, 4, 2300), "context_tokens"),
        (prompts(1, 1200), "tokens"),
    ],
)
def test_what_was_not_measured_is_refused_unless_asked(model: CostModel, shape: SegmentShape, says: str) -> None:
    with pytest.raises(InputError) as refused:
        model.cost(shape)
    assert says in refused.value.field
    assert "measured" in refused.value.remedy
    assert "extrapolation" in refused.value.remedy
    beyond = CostModel(made_up(), extrapolate=True).cost(shape)
    assert beyond.duration_s == pytest.approx(linear_s(shape))


@pytest.mark.parametrize("extrapolate", [False, True])
@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (SegmentShape.draft(4, 16, 512), "draft_length 4 only"),
        (SegmentShape.verify(4, 16, 512), "draft_length 4 only"),
        (SegmentShape.draft(4, 2, 512), "draft_length 4 only"),
        (SegmentShape.verify(8, 4, 512), "batch_size 4 only"),
        (SegmentShape.verify(4, 4, 1024), "context_tokens 512 only"),
        (prompts(2, 128), "batch_size 1 only"),
    ],
)
def test_what_was_measured_at_one_value_is_never_extrapolated(
    extrapolate: bool, shape: SegmentShape, says: str
) -> None:
    costs = stage_costs(batches=(4,), lengths=(4,))
    decodes = costs["segment"].isin([Segment.DRAFT, Segment.VERIFY])
    costs = costs[~decodes | (costs["context_tokens"] == 512)]
    model = CostModel(made_up(stage_costs=costs), extrapolate)
    with pytest.raises(InputError) as refused:
        model.cost(shape)
    assert says in refused.value.remedy
    assert "calibrate at two or more" in refused.value.remedy
    assert "extrapolation" not in refused.value.remedy


def test_below_the_one_value_that_was_measured_a_cost_stays() -> None:
    model = CostModel(made_up(stage_costs=stage_costs(batches=(4,), lengths=(4,))))
    assert model.cost(SegmentShape.verify(1, 4, 512)) == model.cost(SegmentShape.verify(4, 4, 512))


def falling(column: str, least: float) -> CostModel:
    """Costs whose last line over `column` falls to half of what they were at its middle point."""
    costs = stage_costs(lengths=(2, 4, 8))
    last = (costs[column] > least) & (costs["segment"] == "verify")
    costs.loc[last, [c for c in costs if c.endswith("_ms")]] /= 2 * costs[column].max()
    return CostModel(made_up(stage_costs=costs), extrapolate=True)


@pytest.mark.parametrize(
    ("column", "last", "beyond"),
    [
        ("draft_length", (4, 8, 512), (4, 80, 512)),
        ("batch_size", (16, 4, 512), (17, 4, 512)),
        ("batch_size", (16, 4, 512), (900, 4, 512)),
        ("context_tokens", (4, 4, 2048), (4, 4, 2200)),
        ("context_tokens", (4, 4, 2048), (4, 4, 10**6)),
    ],
)
def test_costs_that_fall_hold_their_last_value(
    column: str, last: tuple[int, int, int], beyond: tuple[int, int, int]
) -> None:
    model = falling(column, {"draft_length": 4, "batch_size": 4, "context_tokens": 512}[column])
    held, measured = (model.cost(SegmentShape.verify(*sizes)) for sizes in (beyond, last))
    assert held == pytest.approx(measured)


def test_drafts_shorter_than_measured_cost_between_a_proportional_and_the_same_time() -> None:
    costs = stage_costs(lengths=(4, 8))
    longer = (costs["segment"] == "draft") & (costs["draft_length"] == 8)
    costs.loc[longer, [c for c in costs if c.endswith("_ms")]] *= 100  # its first line falls far below zero
    model = CostModel(made_up(stage_costs=costs), extrapolate=True)
    four = model.cost(SegmentShape.draft(4, 4, 512)).duration_s
    assert model.cost(SegmentShape.draft(4, 1, 512)).duration_s == pytest.approx(four / 4)


def test_no_time_is_ever_nothing_or_less() -> None:
    rng = np.random.default_rng(5)
    for _ in range(6):
        costs = stage_costs(lengths=(2, 4, 8))
        times = [c for c in costs if c.endswith("_ms")]
        costs[times] = costs[times].mul(10 ** rng.uniform(-2, 2, len(costs)), axis=0)
        costs["p05_ms"] /= 1e3
        model = CostModel(made_up(stage_costs=costs), extrapolate=True, contention=NoContention())
        for batch, k, context in zip(*(rng.integers(1, most, 30).tolist() for most in (99, 33, 9000)), strict=True):
            for quantile in (None, 0.0, 1e-12, 0.5, 1.0):
                cost = model.cost(SegmentShape.verify(batch, k, context), quantile)
                assert cost.duration_s > 0
                assert cost.kernel_ms > 0


def test_a_little_past_the_edge_goes_on_along_the_line(model: CostModel) -> None:
    expected = duration_ms(Segment.PREFILL_TARGET, 1, 0, 1100, 0) / 1e3
    assert model.cost(prompts(1, 1100)).duration_s == pytest.approx(expected)


def test_below_the_smallest_the_line_goes_on_but_not_below_proportional(model: CostModel) -> None:
    expected = duration_ms(Segment.PREFILL_TARGET, 1, 0, 2, 0) / 1e3
    assert model.cost(prompts(1, 2)).duration_s == pytest.approx(expected)
    costs = stage_costs()
    prefill = costs["segment"] == "prefill_target"
    for column in [c for c in costs if c.endswith("_ms")]:
        costs.loc[prefill, column] = costs.loc[prefill, "tokens"] ** 2.0  # convex: its first line falls below zero
    steep = CostModel(made_up(stage_costs=costs))
    assert steep.cost(prompts(1, 8)).duration_s == pytest.approx(0.5 * 16**2 / 1e3)


def test_below_the_smallest_a_cost_is_never_above_the_smallest_ones() -> None:
    """Two measured lengths are a line too; one that falls is not followed upwards."""
    costs = stage_costs()
    costs = costs[(costs["segment"] != "prefill_target") | (costs["tokens"] > 16)]
    line = CostModel(made_up(stage_costs=costs))
    expected = duration_ms(Segment.PREFILL_TARGET, 1, 0, 4, 0) / 1e3
    assert line.cost(prompts(1, 4)).duration_s == pytest.approx(expected)
    prefill = costs["segment"] == "prefill_target"
    for column in [c for c in costs if c.endswith("_ms")]:
        costs.loc[prefill, column] = [3.0, 2.0]
    falling = CostModel(made_up(stage_costs=costs))
    assert falling.cost(prompts(1, 4)).duration_s == pytest.approx(3e-3)


def test_jitter_reaches_from_its_lowest_line_to_what_the_mean_lacks(model: CostModel) -> None:
    """The quantiles rise by 0.05 between 5% and 25%: by a quarter of that from 0 to 5%."""
    mean = model.cost(POINT).duration_s
    ends = [model.cost(POINT, quantile).duration_s for quantile in (0.0, 1.0)]
    assert ends == pytest.approx([0.8875 * mean, 1.1125 * mean], rel=1e-6)


def test_quantiles_above_their_mean_are_scaled_to_it() -> None:
    costs = stage_costs()
    quantiles = ["p05_ms", "p25_ms", "p50_ms", "p75_ms", "p95_ms"]
    costs[quantiles] *= 1.3
    model = CostModel(made_up(stage_costs=costs))
    mean = model.cost(POINT).duration_s
    drawn = [model.cost(POINT, u).duration_s for u in (np.arange(2000) + 0.5) / 2000]
    assert np.mean(drawn) == pytest.approx(mean, rel=1e-3)
    assert np.quantile(drawn, 0.75) / np.quantile(drawn, 0.25) == pytest.approx(1.05 / 0.95, rel=1e-2)


def test_jitter_keeps_the_mean_and_the_quantiles(model: CostModel) -> None:
    mean = model.cost(POINT).duration_s
    drawn = np.array([model.cost(POINT, u).duration_s for u in (np.arange(2000) + 0.5) / 2000])
    assert drawn.mean() == pytest.approx(mean, rel=1e-6)
    assert np.quantile(drawn, [0.05, 0.25, 0.5, 0.75, 0.95]) == pytest.approx(SPREAD * mean, rel=2e-3)


@pytest.mark.parametrize(
    ("column", "calm", "wild"),
    [("context_tokens", (2, 4, 500), (2, 4, 2048)), ("batch_size", (2, 4, 512), (2, 16, 512)),
     ("draft_length", (2, 4, 512), (8, 4, 512))],
)  # fmt: skip
def test_an_execution_is_as_unsteady_as_the_measured_point_nearest_to_it(
    column: str, calm: tuple[int, int, int], wild: tuple[int, int, int]
) -> None:
    """Only the largest of one dimension was unsteady: what is nearer to it is, what is nearer to the next is not."""
    costs = stage_costs()
    steady = costs[column] < costs[column].max()
    for name in ("p05_ms", "p25_ms", "p50_ms", "p75_ms", "p95_ms"):
        costs.loc[steady, name] = costs.loc[steady, "mean_ms"]
    model = CostModel(made_up(stage_costs=costs))

    def spread(part: float) -> float:
        """Of the place that lies so far from the calm point to the wild one: quantile 0.95 to the mean."""
        k, batch, context = (round(low + part * (high - low)) for low, high in zip(calm, wild, strict=True))
        shape = SegmentShape.verify(batch, k, context)
        return model.cost(shape, 0.95).duration_s / model.cost(shape).duration_s

    assert [spread(part) for part in (0.0, 0.3)] == pytest.approx([1.0, 1.0])
    assert [spread(part) for part in (0.7, 1.0)] == pytest.approx([1.1, 1.1], rel=1e-3)


def test_rare_long_executions_are_in_the_tail() -> None:
    costs = stage_costs()
    costs["mean_ms"] *= 1.05  # more than the quantiles explain
    model = CostModel(made_up(stage_costs=costs))
    mean = model.cost(POINT).duration_s
    drawn = [model.cost(POINT, u).duration_s for u in (np.arange(2000) + 0.5) / 2000]
    assert np.mean(drawn) == pytest.approx(mean, rel=1e-3)
    assert np.median(drawn) == pytest.approx(mean / 1.05, rel=1e-3)
    assert max(drawn) > 2 * mean


def test_costs_say_where_they_come_from() -> None:
    facts = {name: INFO[name] for name in ("device", "pair", "dtype", "date")}
    measured = CostModel(made_up(), extrapolate=True)
    assert measured.describe() == {**facts, "extrapolate": True, "contention": "measured"}
    alone = CostModel(made_up(), contention=NoContention())
    assert alone.describe() == {**facts, "extrapolate": False, "contention": "none"}


def test_a_loaded_profile_gives_the_same_costs(tmp_path, model: CostModel) -> None:  # type: ignore[no-untyped-def]
    loaded = CostModel(Profile.load(made_up().save(tmp_path)))
    here, there = (m.cost(SegmentShape.draft(3, 5, 300), 0.3) for m in (model, loaded))
    assert tuple(there) == pytest.approx(tuple(here), rel=1e-5)
