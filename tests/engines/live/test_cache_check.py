"""The cache check passes a sound engine in mid-flight and fails whatever is wrong in a pool, however small."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch

from engines.live.model.attention import Layout
from engines.live.model.pairs import Pair, load_pair
from engines.live.model.stages import Stages
from engines.live.serving.cache_check import CacheReport, check_engine, check_slot
from engines.live.serving.engine import LiveEngine
from engines.live.serving.serve import serve
from engines.policy.architecture import ARCHITECTURES
from engines.policy.request import Request
from engines.record.metrics import acceptance
from engines.workload.workload import Workload

PROMPTS = [random.Random(i).sample(range(4, 512), 30 + 9 * i) for i in range(3)]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def full() -> Pair:
    return load_pair("permutation:tiny+tiny-draft:scale=1")


class Bench:
    """Three sequences in slots 0 to 2, driven by hand."""

    def __init__(self, pair: Pair) -> None:
        self.stages = Stages(pair, 4, 4, 200)
        self.slots = torch.arange(3)
        for slot, prompt in enumerate(PROMPTS):
            self.stages.load([slot], [prompt], [0], [0.0])
        counts = [len(prompt) for prompt in PROMPTS]
        layout = Layout.of(counts, self.stages.device)
        self.stages.prefill_draft(self.slots, layout)
        first = self.stages.prefill_target(self.slots, layout).tolist()
        self.sequences = [[*prompt, token] for prompt, token in zip(PROMPTS, first, strict=True)]

    def steps(self, count: int, before_verify: Callable[[Stages], object] = lambda stages: None) -> Bench:
        for _ in range(count):
            self.stages.draft(self.slots, 4)
            before_verify(self.stages)
            for i, (matched, *picked) in enumerate(self.stages.verify(self.slots, 4).tolist()):
                self.sequences[i] += picked[: matched + 1]
        return self

    def check(self, slot: int = 1, sequence: list[int] | None = None) -> list[CacheReport]:
        tokens = self.sequences[slot] if sequence is None else sequence
        return check_slot(self.stages, slot, tokens, len(PROMPTS[slot]))

    def failures(self, role: str) -> str:
        return "; ".join(next(report for report in self.check() if report.role == role).failures)


@pytest.fixture
def bench(full: Pair) -> Bench:
    return Bench(full).steps(5)


def test_a_sound_pool_passes(bench: Bench) -> None:
    for slot in range(3):
        reports = bench.check(slot)
        assert [report.failures for report in reports] == [[], []]
        assert [report.rows for report in reports] == [len(bench.sequences[slot]) - n for n in (1, 2)]
        assert max(report.row_error for report in reports) < 1e-5


def test_in_bfloat16_a_sound_pool_passes_and_a_stale_row_does_not() -> None:
    bench = Bench(load_pair("permutation:tiny+tiny-draft:scale=1", dtype=torch.bfloat16)).steps(5)
    assert all(report.ok for report in bench.check())
    bench.stages.target_pool.keys[0][1, 20] = bench.stages.target_pool.keys[0][1, 19]
    assert "worst row" in bench.failures("target")


def test_the_check_leaves_the_engine_as_it_was(bench: Bench, full: Pair) -> None:
    bench.check()
    again = Bench(full).steps(10)
    assert bench.steps(5).sequences == again.sequences


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("table", ["keys", "values"])
def test_one_stale_row_in_one_layer_fails(bench: Bench, role: str, table: str) -> None:
    pool = getattr(bench.stages, f"{role}_pool")
    getattr(pool, table)[1][1, 25] = getattr(pool, table)[1][1, 24]
    assert "worst row" in bench.failures(role)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_keys_that_are_off_by_one_position_fail(bench: Bench, role: str) -> None:
    pool = getattr(bench.stages, f"{role}_pool")
    pool.keys[0][1, 1:20] = pool.keys[0][1, :19].clone()
    assert "keys" in bench.failures(role)


def test_a_wrong_length_during_a_step_fails(full: Pair) -> None:
    def lengthen(stages: Stages) -> None:
        stages.lengths[1] += 1

    bench = Bench(full).steps(1, before_verify=lengthen)
    assert not bench.check()[0].ok
    bench.stages.lengths[1] = len(bench.sequences[1])  # even with the tables put right, the pool shows it
    bench.stages.tokens[1, : len(bench.sequences[1])] = torch.tensor(bench.sequences[1])
    assert "worst row" in bench.failures("target")


def test_a_wrong_length_in_the_tables_or_from_the_caller_fails(bench: Bench) -> None:
    shorter = bench.sequences[1][:-1]
    assert all("other tokens" in report.failures[0] for report in bench.check(1, shorter))
    bench.stages.lengths[1] -= 1
    assert all("other tokens" in report.failures[0] for report in bench.check())


def test_another_slot_s_rows_fail(bench: Bench) -> None:
    reports = check_slot(bench.stages, 2, bench.sequences[1], len(PROMPTS[1]))
    assert all(not report.ok for report in reports)
    assert all(report.row_error > 0.5 for report in reports)


def test_a_step_that_wrote_to_the_wrong_slot_fails(full: Pair) -> None:
    bench = Bench(full).steps(2)
    pool = bench.stages.target_pool
    rows = range(len(bench.sequences[1]) - 4, len(bench.sequences[1]) - 1)
    for keys in pool.keys:
        keys[1, rows.start : rows.stop] = keys[0, rows.start : rows.stop]
    assert "worst row" in bench.failures("target")


def test_a_token_that_the_target_did_not_pick_fails(bench: Bench) -> None:
    """The caches may agree with a wrong token; the recomputed logits do not."""
    wrong = [*bench.sequences[1]]
    wrong[-1] = (wrong[-1] + 7) % 512
    bench.stages.tokens[1, len(wrong) - 1] = wrong[-1]
    assert "picked tokens" in "; ".join(bench.check(1, wrong)[0].failures)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_engines_pass_in_mid_flight(name: str, full: Pair) -> None:
    """Requests join and leave, drafts are accepted and rejected, slots are used again, and at every moment the
    pools hold what they should."""
    rng = random.Random(2)
    prompts = [tuple(rng.randrange(4, 512) for _ in range(rng.randint(1, 40))) for _ in range(12)]
    asked = tuple(
        Request(i, len(prompt), rng.randint(5, 40), prompt=prompt, temperature=float(i % 4 == 0))
        for i, prompt in enumerate(prompts)
    )
    reports: list[CacheReport] = []
    with LiveEngine(ARCHITECTURES[name].replace(slots=4), full) as engine:
        run = serve(
            engine, Workload(asked, concurrency=6), lambda done, total: reports.extend(check_engine(engine, 2))
        )
    assert (run.requests["status"] == "finished").all()
    if ARCHITECTURES[name].drafts:
        assert 0.3 < acceptance(run)["acceptance_rate"] < 0.7
    assert len(reports) > 10
    assert [failure for report in reports for failure in report.failures] == []


def test_an_engine_that_breaks_its_cache_is_caught_though_its_output_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A permutation pair says the right thing after any cache, which is why the check exists."""
    pair = load_pair("permutation:tiny+tiny-draft")
    verify = Stages.verify

    def careless(stages: Stages, slots: torch.Tensor, *args: object) -> torch.Tensor:
        stages.target_pool.keys[2][slots, 3] = 0
        return verify(stages, slots, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Stages, "verify", careless)
    reports: list[CacheReport] = []
    request = Request(0, 10, 40, prompt=tuple(range(20, 30)))
    other = Request(1, 10, 5, prompt=tuple(range(30, 40)))
    with LiveEngine(ARCHITECTURES["pd"], pair) as engine:
        clients = Workload((request, other), concurrency=2)
        run = serve(engine, clients, lambda done, total: reports.extend(check_engine(engine)))
    assert (run.requests["status"] == "finished").all()
    assert (run.tapes[0] >= -1).all()
    assert any("worst row" in failure for report in reports for failure in report.failures)
