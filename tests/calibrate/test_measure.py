"""A calibration measures what it says, keeps to its budget, and goes on where it was interrupted."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

from calibrate.measure import calibrate, footprint, plan  # noqa: E402
from calibrate.measure_contention import default_groups, measure_contention, spaced  # noqa: E402
from calibrate.parts import remove_parts  # noqa: E402
from calibrate.profile import COLUMNS, Profile  # noqa: E402
from calibrate.stage_costs import Grid, measure_stage_costs, median_half_width  # noqa: E402
from calibrate.workbench import RepeatableCall, Workbench, make_runner, make_stages  # noqa: E402
from engines.errors import InputError  # noqa: E402
from engines.live.device.streams import HostStream  # noqa: E402
from engines.live.model.graphs import GraphRunner  # noqa: E402
from engines.live.model.pairs import Pair, load_pair  # noqa: E402
from engines.pairs.origin import EMBEDDED  # noqa: E402
from engines.policy.architecture import Segment, Step  # noqa: E402
from engines.policy.segment_shape import SegmentShape  # noqa: E402

pytestmark = pytest.mark.live
SMALL = Grid(batches=(1, 4), draft_lengths=(2,), contexts=(16,), prompt_tokens=(16, 64))


def silent(what: str, fraction: float) -> None:
    assert 0 <= fraction <= 1


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("embedded")


@pytest.fixture(scope="module")
def profile(pair: Pair) -> Profile:
    return calibrate(pair, SMALL, budget_s=4, progress=silent)


def test_a_calibration_covers_the_grid_and_passes_its_own_checks(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path)
    again = Profile.load(tmp_path)
    assert len(again.stage_costs) == len(SMALL.points()) == 8
    assert again.contention.groupby("group").size().isin([2, 3]).all()
    assert again.contention["rate"].between(0, 1).all()
    assert again.acceptance["rate"].is_monotonic_decreasing
    assert set(again.tapes) == set(profile.tapes)


def test_a_verify_without_drafts_is_measured_alone(pair: Pair) -> None:
    grid = Grid(batches=(1, 3), draft_lengths=(0, 2), contexts=(16,), prompt_tokens=(16,))
    table = measure_stage_costs(pair, grid, 0.0, silent)
    rows = table[table["segment"].isin(["draft", "verify"])][["segment", "draft_length", "batch_size", "tokens"]]
    assert sorted(rows.itertuples(index=False, name=None)) == [
        ("draft", 2, 1, 2), ("draft", 2, 3, 6), ("verify", 0, 1, 1), ("verify", 0, 3, 3), ("verify", 2, 1, 3),
        ("verify", 2, 3, 9),
    ]  # fmt: skip
    together = [shape for group in default_groups(grid) for shape in group if not shape.prefills]
    assert {shape.draft_length for shape in together} == {2}


def test_a_profile_needs_drafts() -> None:
    with pytest.raises(InputError, match="a profile has drafts too"):
        Grid(draft_lengths=(0,))


def test_graphs_of_a_verify_without_drafts_are_found(pair: Pair) -> None:
    stages = make_stages(pair, 4, 2, 32)
    shapes = [SegmentShape.verify(3, 0, 16), SegmentShape.draft(3, 2, 16), SegmentShape.verify(3, 2, 16)]
    runner = make_runner(stages, HostStream(), [*shapes, SegmentShape.prefill(Segment.PREFILL_DRAFT, 1, 16)], True)
    assert isinstance(runner, GraphRunner)
    assert runner._plan.draft_lengths == (0, 2)
    bench = Workbench(stages, 0, 4, runner)
    with torch.inference_mode():
        for shape in shapes:
            bench.call(shape)()
    assert stages.lengths[:3].min() >= 12
    assert stages.lengths[:3].float().mean() == pytest.approx(17, abs=2)


@pytest.mark.parametrize("grid", [SMALL, Grid((2, 6), (1, 3), (8, 90), (40,), (1, 20))])
def test_no_part_of_a_calibration_takes_more_slots_than_are_planned(
    grid: Grid, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):  # noqa: N818
        pass

    def asked(pair: Pair, slots: int, draft_length: int, context_tokens: int) -> None:
        raise Asked(slots, draft_length, context_tokens + 1)

    architecture, context = footprint(grid)
    most = []
    for module, measure in (
        ("stage_costs", lambda: measure_stage_costs(pair, grid, 0, silent)),
        ("measure_contention", lambda: measure_contention(pair, grid, default_groups(grid), 0, silent)),
    ):
        monkeypatch.setattr(f"calibrate.{module}.make_stages", asked)
        with pytest.raises(Asked) as caught:
            measure()
        most.append(caught.value.args)
    assert all(length == architecture.draft_length.maximum for _, length, _ in most)
    assert all(slots * tokens <= architecture.slots * context for slots, _, tokens in most)


def test_a_plan_says_what_a_calibration_then_does(profile: Profile) -> None:
    alone, together, live = plan(SMALL, 40.0)
    assert f"{len(profile.stage_costs)} segments alone" in alone[1]
    assert f"{profile.contention['group'].nunique()} groups" in together[1]
    assert "runs" in live[1]
    assert alone[2] + together[2] + live[2] == pytest.approx(40.0)


def test_sizes_are_a_factor_and_a_number_apart_and_keep_both_ends() -> None:
    assert spaced((1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64), 4 / 3, apart=4) == [1, 4, 8, 12, 16, 24, 32, 48, 64]
    assert spaced((1, 2, 4, 8), 4) == [1, 2, 8]
    assert spaced((5,), 2) == [5]


def test_more_work_takes_longer(profile: Profile) -> None:
    costs = profile.stage_costs.set_index(["segment", "batch_size", "tokens"])["p25_ms"]
    assert costs["prefill_target", 1, 64] > costs["prefill_target", 1, 16]
    assert costs["prefill_target", 1, 64] > costs["prefill_draft", 1, 64]


def test_host_time_is_measured_for_every_step(profile: Profile) -> None:
    times = profile.host_times.set_index("step")
    assert list(times.index) == list(Step)
    assert (times["before_ms"] + times["wake_up_ms"] + times["after_ms"] > 0).all()
    assert len(times.drop_duplicates()) == len(times)  # none stands in for another


def test_a_grid_gets_the_sizes_that_engines_capture_between_its_own() -> None:
    grid = Grid(batches=(2, 20), prompt_tokens=(64, 200, 300)).with_captured_sizes()
    assert grid.batches == (2, 4, 6, 8, 10, 12, 16, 20)
    assert grid.prompt_tokens == (64, 128, 192, 200, 256, 300)


def test_kernels_are_counted_by_what_runs(pair: Pair) -> None:
    bench = Workbench(make_stages(pair, 4, 4, 64), 0, 4)

    def kernels(k: int) -> int:
        return bench.count_kernels(SegmentShape.draft(2, k, 16))

    with torch.inference_mode():
        one, two, three = kernels(1), kernels(2), kernels(3)
    assert three - two == two - one > 20  # every further draft token is one more pass of the same kernels


def test_captured_segments_are_replayed_at_just_their_sizes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [*SMALL.points(), SegmentShape.prefill(Segment.PREFILL_TARGET, 3, 48)]
    stages, stream = make_stages(pair, 4, 2, 64), HostStream()
    with torch.inference_mode():
        runner = make_runner(stages, stream, shapes, graphs=True)
        assert isinstance(runner, GraphRunner)
        assert len(runner) == 2 * 3 + 3 * 2  # first, next and verify at two batches; both models at three lengths
        bench = Workbench(stages, 0, 4, runner)
        monkeypatch.setattr("engines.live.model.eager.EagerRunner._run", lambda *args: pytest.fail("ran uncaptured"))
        for shape in shapes:
            assert min(bench.time(stream, bench.call(shape))) > 0


def test_a_segment_sees_the_context_that_it_asks_for(pair: Pair) -> None:
    stages = make_stages(pair, 4, 4, 64)
    bench = Workbench(stages, 0, 4)
    with torch.inference_mode():
        for _ in range(3):  # a verify lengthens its sequences; the call must start over each time
            bench.call(SegmentShape.verify(1, 4, 20))()
            assert stages.lengths[0].item() in range(21, 26)
            bench.call(SegmentShape.verify(3, 4, 21))()  # around their mean, by a third
            assert all(
                after - before in range(1, 6)
                for after, before in zip(stages.lengths[:3].tolist(), (14, 21, 28), strict=True)
            )


def test_the_fewest_repeats_are_made_whatever_the_budget(pair: Pair) -> None:
    grid = Grid((1,), (1,), (8,), (8,))
    started = time.monotonic()
    table = measure_stage_costs(pair, grid, 0.0, silent)
    assert (table["repeats"] >= 12).all()
    assert time.monotonic() - started < 20


def test_the_medians_interval_shrinks_with_repeats_and_is_wide_for_noise() -> None:
    rng = np.random.default_rng(0)
    noisy, calm = rng.normal(10, 2, 400), rng.normal(10, 0.1, 400)
    assert median_half_width(calm) < 0.02 < median_half_width(noisy[:50])
    assert median_half_width(noisy) < median_half_width(noisy[:50])
    inside = [abs(np.median(rng.normal(10, 2, 50)) / 10 - 1) for _ in range(300)]
    typical = np.median([median_half_width(rng.normal(10, 2, 50)) for _ in range(50)])
    assert 0.9 < np.mean(np.array(inside) < typical) < 0.99


def test_two_sleepers_do_not_slow_each_other_but_two_holders_of_a_lock_do(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement finds rate 1 where nothing is shared and about 1/2 where everything is."""
    shared = HostStream()

    def sleep(bench: Workbench, shape: SegmentShape) -> RepeatableCall:
        return RepeatableCall(lambda: None, lambda: lambda: time.sleep(0.01))

    def sleep_in_turn(bench: Workbench, shape: SegmentShape) -> RepeatableCall:
        def work() -> None:
            with shared.turn():
                time.sleep(0.01)

        return RepeatableCall(lambda: None, lambda: work)

    group = [(SegmentShape.draft(1, 2, 16), SegmentShape.verify(1, 2, 16))]
    monkeypatch.setattr(Workbench, "count_kernels", lambda *args: 1)
    for call, low, high in ((sleep, 0.85, 1.0), (sleep_in_turn, 0.4, 0.65)):
        monkeypatch.setattr(Workbench, "call", call)
        rates = measure_contention(pair, SMALL, group, 1.5, silent)["rate"]
        assert rates.between(low, high).all(), rates


def test_default_groups_are_pairs_and_triples_of_lanes() -> None:
    groups = default_groups(Grid())
    assert {len(group) for group in groups} == {2, 3}
    assert all(len({shape.segment for shape in group}) == len(group) for group in groups)
    assert {shape.segment for group in groups for shape in group} == set(Segment)


def test_an_interrupted_calibration_goes_on(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = tmp_path / "parts"

    def interrupted(*args: object) -> pd.DataFrame:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("calibrate.measure.measure_contention", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate(pair, SMALL, 0.5, keep=keep, progress=silent)
    first = pd.read_parquet(keep / "stage_costs.parquet")
    finished = calibrate(pair, SMALL, 0.5, keep=keep, progress=silent)
    assert finished.stage_costs["mean_ms"].to_numpy() == pytest.approx(first["mean_ms"].to_numpy(), rel=1e-5)
    remove_parts(keep)
    assert not keep.exists()


def test_parts_that_another_model_was_measured_for_are_not_taken(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both pairs are called the same, and only the draft model's weights differ."""
    one, other = (Path(shutil.copytree(EMBEDDED, tmp_path / place / "pair")) for place in ("one", "other"))
    weights = load_file(other / "draft" / "model.safetensors")
    weights = {name: weight * 1.01 for name, weight in weights.items()}
    save_file(weights, other / "draft" / "model.safetensors", metadata={"format": "pt"})
    pairs = [load_pair(folder) for folder in (one, other, one)]
    assert [each.name for each in pairs] == ["pair"] * 3
    measured: list[Pair] = []

    def costs(pair: Pair, *args: object) -> pd.DataFrame:
        measured.append(pair)
        return pd.DataFrame({column: [1] for column in COLUMNS["stage_costs"]})

    def interrupted(*args: object) -> pd.DataFrame:
        raise KeyboardInterrupt

    monkeypatch.setattr("calibrate.measure.measure_stage_costs", costs)
    monkeypatch.setattr("calibrate.measure.measure_contention", interrupted)
    for each in (pairs[0], pairs[0], pairs[1]):
        with pytest.raises(KeyboardInterrupt):
            calibrate(each, SMALL, 0.5, keep=tmp_path / "parts", progress=silent)
    assert measured == pairs[:2]  # the second time it went on


def test_a_profile_names_both_models(profile: Profile, pair: Pair, tmp_path: Path) -> None:
    profile.save(tmp_path)
    models = Profile.load(tmp_path).info["pair_models"]
    assert models == pair.origins.describe()
    assert [models[role]["name"] for role in ("target", "draft")] == ["embedded/target", "embedded/draft"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": ()}, "batches"),
        ({"draft_lengths": (0,)}, "draft_lengths"),
        ({"contexts": (1,)}, "contexts"),
        ({"packed": (32,)}, "packed"),
    ],
)
def test_an_impossible_grid_is_refused(settings: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grid(**settings)


def test_a_grid_beyond_the_pair_is_refused_before_any_measurement(pair: Pair) -> None:
    with pytest.raises(InputError, match="the pair takes at most"):
        calibrate(pair, Grid(contexts=(4000,)))
    with pytest.raises(InputError, match=f"draft_lengths = 3000: .*use at most {pair.max_context - 4}"):
        calibrate(pair, Grid(draft_lengths=(1, 3000)))
