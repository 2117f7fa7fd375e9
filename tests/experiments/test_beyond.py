"""What lies beyond the profile is what its costs refuse without extrapolation, and is counted alike everywhere."""

from __future__ import annotations

import pytest

from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import PD, PDV, Architecture, Segment, Step
from engines.policy.segment_shape import SegmentShape
from engines.workload.workload import FixedLength, UniformLength, make_workload
from experiments.runner.beyond import beyond_of_fleet, beyond_text, requests_beyond
from sim.acceptance import Independent
from sim.conditions import Conditions
from sim.cost_protocols import DIMENSIONS, SegmentCost
from sim.costs import CostModel
from sim.engine import simulate, totalled
from sim.fleet import simulate_fleet
from sim.routers import Fleet
from tests.experiments import synthetic
from tests.sim.random_runs import H100


class Asked(CostModel):
    """Costs that keep the shapes that they were asked for."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile, extrapolate=True)
        self.shapes: list[SegmentShape] = []

    def cost(self, shape: SegmentShape, quantile: float | None = None) -> SegmentCost:
        self.shapes.append(shape)
        return super().cost(shape, quantile)


COSTS = CostModel(synthetic.profile(), extrapolate=True)
LOAD = make_workload(60, UniformLength(20, 480), UniformLength(1, 60), concurrency=30, seed=1)
NONE, BOTH = (), ("batch_size", "context_tokens")


@pytest.mark.parametrize("layout", [PD, PDV], ids=["pd", "pdv"])
def test_segments_count_if_their_costs_would_be_refused(layout: Architecture) -> None:
    asked, strict = Asked(synthetic.profile()), CostModel(synthetic.profile())
    wide = layout.with_batch_limits({Step.DRAFT: 24, Step.VERIFY: 24, Step.DRAFT_VERIFY: 24})
    run, metrics = simulate_fleet(Fleet(2), wide, LOAD, asked, Independent(0.7))
    found = run.info["beyond_profile"]
    assert beyond_of_fleet(metrics) == found
    assert found["segments"] == len(asked.shapes) == len(run.spans)
    assert found["beyond"] == sum(_refused(strict, shape) for shape in asked.shapes)
    named = [asked.beyond(shape) for shape in asked.shapes]
    for name in DIMENSIONS:
        assert found[name] == sum(name in dimensions for dimensions in named)
    kinds = {NONE, ("batch_size",), ("tokens",), ("context_tokens",), BOTH}
    assert set(named) == kinds  # so that no way of counting is right by chance
    own = metrics.drop("fleet")
    assert own["beyond_profile"].sum() == found["beyond"]
    assert (own["beyond_profile_share"] == own["beyond_profile"] / own["segments"]).all()
    alone = simulate(wide, LOAD, asked, Independent(0.7)).info["beyond_profile"]
    assert alone["beyond"] > 0
    assert totalled(wide, LOAD, Conditions(asked, Independent(0.7)))[1] == alone


def _refused(costs: CostModel, shape: SegmentShape) -> bool:
    try:
        costs.cost(shape)
    except InputError:
        return True
    return False


def test_a_batch_that_is_padded_beyond_the_profile_counts() -> None:
    """Batches of 66 are within reach of the 64 that were measured. The 96 that they are padded to are not."""
    profile = Profile.load(H100)
    layout = PD.replace(slots=66).with_batch_limits({Step.PREFILL: 4, Step.DRAFT_VERIFY: 128})
    load = make_workload(66, FixedLength(128), FixedLength(256), concurrency=66)
    run = simulate(layout, load, CostModel(profile, extrapolate=True), Independent(0.8), jitter=False)
    large = int((run.spans["batch_size"] > 64).sum())
    assert large > 0
    assert run.info["beyond_profile"]["batch_size"] == run.info["beyond_profile"]["beyond"] == large
    with pytest.raises(InputError, match="draft batch_size = 96"):
        simulate(layout, load, profile, Independent(0.8), jitter=False)


def test_without_extrapolation_there_is_nothing_to_count() -> None:
    load = make_workload(3, FixedLength(20), FixedLength(8), concurrency=1)
    run = simulate(PD, load, CostModel(synthetic.profile()), Independent(0.7))
    assert "beyond_profile" not in run.info


def test_requests_count_if_they_go_beyond_on_their_own() -> None:
    prompt = min(COSTS.covered(segment)["tokens"][1] for segment in (Segment.PREFILL_DRAFT, Segment.PREFILL_TARGET))
    context = min(COSTS.covered(segment)["context_tokens"][1] for segment in (Segment.DRAFT, Segment.VERIFY))
    limit = 400
    for positions in (300, 390, 10_000):
        counted = requests_beyond(LOAD.requests, COSTS, limit, positions)
        running = [r for r in LOAD.requests if r.prompt_tokens < limit]
        lengths = [(r.prompt_tokens, min(r.prompt_tokens + r.max_tokens, limit)) for r in running]
        assert counted["too_long"] == sum(whole > positions for _, whole in lengths)
        assert counted["requests"] == sum(own > prompt or whole > context for own, whole in lengths)
        assert 0 < counted["requests"] < len(running) < len(LOAD.requests)


def test_words_name_what_lies_beyond() -> None:
    none = {"segments": 10, "beyond": 0, **dict.fromkeys(DIMENSIONS, 0), "requests": 0, "too_long": 0}
    assert beyond_text(none, 5) == "nothing"
    some = {**none, "beyond": 4, "batch_size": 3, "tokens": 2, "requests": 1}
    assert beyond_text(some, 5) == "40.0% of the segments (batch_size 30.0%, tokens 20.0%), 1 of 5 requests"
    assert beyond_text({**some, "too_long": 1}, 5).endswith("; 1 requests are longer than the models support")
