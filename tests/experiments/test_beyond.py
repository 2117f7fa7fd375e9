"""What lies beyond the profile is what its costs refuse without extrapolation, and is counted alike everywhere."""

from __future__ import annotations

from engines.errors import InputError
from engines.policy.architecture import PD, PDV, Segment, Step
from engines.policy.segment_shape import SegmentShape
from engines.workload.workload import UniformLength, make_workload
from experiments.runner.beyond import DIMENSIONS, beyond_of_fleet, beyond_text, requests_beyond, segments_beyond
from sim.acceptance import Independent
from sim.costs import CostModel
from sim.fleet import simulate_fleet
from sim.routers import Fleet
from tests.experiments import synthetic

COSTS, STRICT = CostModel(synthetic.profile(), extrapolate=True), CostModel(synthetic.profile())
LOAD = make_workload(60, UniformLength(20, 900), UniformLength(1, 60), concurrency=30, seed=1)
SHAPE = ["segment", "batch_size", "draft_length", "tokens", "context_tokens"]


def test_counts_are_those_of_the_shapes_that_are_refused() -> None:
    for layout in (PD, PDV):
        wide = layout.with_batch_limits({Step.DRAFT: 24, Step.VERIFY: 24, Step.DRAFT_VERIFY: 24})
        run, metrics = simulate_fleet(Fleet(2), wide, LOAD, COSTS, Independent(0.7))
        found = segments_beyond(run, COSTS)
        assert beyond_of_fleet(metrics) == found
        shapes = [SegmentShape(Segment(name), *size) for name, *size in run.spans[SHAPE].itertuples(index=False)]
        assert found["segments"] == len(shapes)
        assert found["beyond"] == sum(map(_refused, shapes))
        named = [COSTS.beyond(shape) for shape in shapes]
        assert {name: found[name] for name in DIMENSIONS} == {
            name: sum(name in dimensions for dimensions in named) for name in DIMENSIONS
        }
        assert all(found[name] > 0 for name in ("batch_size", "tokens", "context_tokens"))
        assert max(map(len, named)) == 2  # so that counting by dimension is not counting segments
        own = metrics.drop("fleet")
        assert own["beyond_profile"].sum() == found["beyond"]
        assert (own["beyond_profile_share"] == own["beyond_profile"] / own["segments"]).all()


def _refused(shape: SegmentShape) -> bool:
    try:
        STRICT.cost(shape)
    except InputError:
        return True
    return False


def test_requests_count_if_they_go_beyond_on_their_own() -> None:
    prompt = min(COSTS.covered(segment)["tokens"][1] for segment in (Segment.PREFILL_DRAFT, Segment.PREFILL_TARGET))
    context = min(COSTS.covered(segment)["context_tokens"][1] for segment in (Segment.DRAFT, Segment.VERIFY))
    limit = 700
    for positions in (300, 650, 10_000):
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
