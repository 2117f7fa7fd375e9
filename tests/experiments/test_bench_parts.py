"""What a bench does with numbers and outputs, on inputs small enough to check by hand."""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from engines.errors import InputError  # noqa: E402
from engines.live.model.pairs import Pair, load_pair  # noqa: E402
from engines.pairs.permutation import expected_output, parse_pair  # noqa: E402
from engines.policy.architecture import Segment, Stage  # noqa: E402
from engines.policy.request import Request  # noqa: E402
from engines.record.roofline import Ceilings, ModelCounts, PairCounts  # noqa: E402
from experiments.bench.caches import DAMAGES, CacheFindings  # noqa: E402
from experiments.bench.engines import MOST_CARRIED, PACKED, _requests, candidates  # noqa: E402
from experiments.bench.exactness import Agreement, ClosedForm, Generated, agreement, expected_of  # noqa: E402
from experiments.bench.peers import measure_peers  # noqa: E402
from experiments.bench.plain import generate, plain_models  # noqa: E402
from experiments.bench.report import _short  # noqa: E402
from experiments.bench.settings import LARGE, SMALL, defaults_for  # noqa: E402
from experiments.bench.stages import with_floors  # noqa: E402
from experiments.bench.whole import check_fits  # noqa: E402

pytestmark = pytest.mark.live
NAME = "permutation:tiny+tiny-draft:alpha=0.7"
TINY = dataclasses.replace(SMALL, pair=NAME, prompt_tokens=8, output_tokens=12)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(NAME)


def silent(what: str, fraction: float) -> None:
    assert 0 <= fraction <= 1


def cost(segment: Segment, batch: int, k: int, tokens: int, context: int, p50_ms: float) -> dict[str, object]:
    return {"segment": str(segment), "batch_size": batch, "draft_length": k, "tokens": tokens, 
            "context_tokens": context, "p50_ms": p50_ms}  # fmt: skip


def test_floors_by_hand() -> None:
    """A target of 1000 weights and one layer of one head of 10 numbers; bytes and operations counted below."""
    target = ModelCounts(900, 100, 1, 1, 1, 10, 2)  # 2000 bytes of weights, 40 bytes of keys and values a token
    pair = PairCounts(target, ModelCounts(90, 10, 1, 1, 1, 10, 2))
    table = pd.DataFrame([cost(Segment.VERIFY, 2, 1, 4, 50, 8.0), cost(Segment.DRAFT, 1, 2, 2, 50, 5.0)])
    moving = with_floors(table, pair, Ceilings(1e6, 1e12)).set_index("segment")
    # Verify: 2000 bytes of weights; of 2 requests 50 + 1 tokens read, then 2 each written: 2000 + 106 * 40 bytes.
    assert moving.loc["verify", "floor_ms"] == pytest.approx(6.24)
    assert moving.loc["verify", "times_floor"] == pytest.approx(8 / 6.24)
    assert moving.loc["verify", "tb_per_s"] == pytest.approx(6240 / 8e-3 / 1e12)
    # Draft: 2 passes over 200 bytes; 50 tokens read by the first and 51 by the second, 3 written.
    assert moving.loc["draft", "floor_ms"] == pytest.approx(0.4 + 104 * 40e-3)
    computing = with_floors(table, pair, Ceilings(1e12, 1e6)).set_index("segment")
    # Verify: 4 tokens through 1000 weights are 8000 operations; 2 x (50 + 51) pairs of 40 operations each.
    assert computing.loc["verify", "floor_ms"] == pytest.approx(8.0 + 202 * 40e-3)
    assert computing.loc["verify", "tflop_per_s"] == pytest.approx(16080 / 8e-3 / 1e12)


def test_floors_of_an_h100_are_those_of_the_table() -> None:
    llama = ModelCounts(6_738_415_616 - 2 * 32_000 * 4096, 32_000 * 4096, 32, 32, 32, 128, 2)
    tiny = ModelCounts(1_100_048_384 - 2 * 32_000 * 2048, 32_000 * 2048, 22, 32, 4, 64, 2)
    table = pd.DataFrame(
        [cost(Segment.DRAFT, 8, 4, 32, 400, 6.0), cost(Segment.VERIFY, 8, 4, 40, 400, 6.0),
         cost(Segment.VERIFY, 64, 4, 320, 400, 13.0)]
    )  # fmt: skip
    floors = with_floors(table, PairCounts(llama, tiny), Ceilings(3.0e12, 790e12))["floor_ms"]
    assert floors.tolist() == pytest.approx([2.9, 5.1, 9.8], rel=0.05)


def test_candidates_have_a_slot_for_everyone_and_large_limits_where_more_come() -> None:
    settings = dataclasses.replace(LARGE, draft_length=3)
    chosen = {(c.architecture.name, c.limits): c for c in candidates(settings)}
    assert set(chosen) == {
        ("target-only", "default"), ("target-only", "large"), ("baseline", "default"),
        ("pd", "default"), ("pd", "large"), ("pdv", "default"), ("pdv", "large"),
    }  # fmt: skip
    assert {c.architecture.slots for c in chosen.values()} == {64}
    lengths = {name: c.architecture.draft_length.k for (name, _), c in chosen.items()}  # type: ignore[union-attr]
    assert lengths == {"target-only": 0, "baseline": 3, "pd": 3, "pdv": 3}
    assert max(chosen["baseline", "default"].concurrencies) <= MOST_CARRIED < 64
    large = chosen["pd", "large"]
    assert [large.limit(stage) for stage in (Stage.PREFILL, Stage.DRAFT, Stage.VERIFY)] == [PACKED, 64, 64]
    assert [chosen["pdv", "default"].limit(stage) for stage in Stage] == [1, 6, 12]
    few = candidates(dataclasses.replace(LARGE, concurrencies=(1, 4)))
    assert {c.limits for c in few} == {"default"}


@pytest.mark.parametrize(
    ("clients", "affordable", "most", "expected"),
    [(1, 0.3, 3, 2), (1, 50, 3, 3), (10, 4, 3, 15), (10, 22.7, 3, 22), (10, 400, 3, 30), (3, 0, 2, 5)],
)
def test_requests_fit_the_budget_but_keep_all_clients_busy(
    clients: int, affordable: float, most: int, expected: int
) -> None:
    assert _requests(clients, affordable, most) == expected


def test_each_kind_of_device_has_its_defaults() -> None:
    assert defaults_for("cpu") is SMALL
    assert defaults_for("cuda:1") is LARGE


@pytest.mark.parametrize(("field", "value"), [("context", 1), ("batches", ()), ("budget_s", 0), ("draft_length", 0)])
def test_settings_that_mean_nothing_are_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        dataclasses.replace(SMALL, **{field: value})


@pytest.mark.parametrize(
    ("field", "refusal"),
    [("concurrencies", r"slots = 900000: \d+ fit"), ("batches", "workspace = '.* GiB': does not fit")],
)
def test_what_does_not_fit_the_device_is_refused(field: str, refusal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.live.serving.memory.free_bytes", lambda device: 8 << 30)
    check_fits(TINY)
    with pytest.raises(InputError, match=refusal):
        check_fits(dataclasses.replace(TINY, architectures=("baseline",), **{field: (900_000,)}))


@pytest.mark.parametrize("k", [1, 9])
def test_stages_fit_up_to_the_last_position(k: int) -> None:
    longest = 512 - k - 2
    check_fits(dataclasses.replace(TINY, draft_length=k, prompts=(longest,)))
    with pytest.raises(InputError, match="the pair supports 512 positions"):
        check_fits(dataclasses.replace(TINY, draft_length=k, prompts=(longest + 1,)))


def test_an_output_is_exact_or_its_first_difference_is_named() -> None:
    known = {(1,): [5, 6, 7], (2,): [8, 9, 1]}
    expected = SimpleNamespace(exact=True, what="", tokens=lambda prompt, count: known.get(tuple(prompt)))
    asked = [Request(i, 1, 3, prompt=(i,)) for i in (1, 2, 3)]
    said = {1: [5, 6, 7], 2: [8, 9, 1], 3: [0, 0, 0]}
    assert agreement(expected, asked, said) == Agreement(2, 2)
    assert agreement(expected, asked, {**said, 2: [8, 4, 1]}) == Agreement(2, 1, "request 2, output token 1")
    assert agreement(expected, asked, {**said, 2: [8, 9]}) == Agreement(2, 1, "request 2, output token 2")
    assert agreement(expected, asked, {2: said[2]}) == Agreement(2, 1, "request 1, output token 0")


def test_the_closed_form_is_what_transformers_generates(pair: Pair) -> None:
    prompts = [(7, 9, 30), (3, 200, 401)]
    expected = expected_of(NAME, pair)
    assert isinstance(expected, ClosedForm)
    with plain_models(pair):
        generated = generate(pair, prompts, 20)
        assisted = generate(pair, prompts[:1], 20, assisted=True)
    assert generated == [expected.tokens(prompt, 20) for prompt in prompts]
    assert assisted == generated[:1]
    assert generated[0] == expected_output(parse_pair(NAME), prompts[0], 20).tolist()


def test_few_prompts_are_generated_and_longer_outputs_replace_shorter(pair: Pair) -> None:
    expected = expected_of("some/folder", pair)
    assert isinstance(expected, Generated)
    assert expected.exact  # float32
    closed = ClosedForm(parse_pair(NAME))
    prompts = [(i, i + 1) for i in range(20, 20 + expected.most + 1)]
    for prompt in prompts[:-1]:
        assert expected.tokens(prompt, 6) == closed.tokens(prompt, 6)
    assert expected.tokens(prompts[0], 9) == closed.tokens(prompts[0], 9)
    assert expected.tokens(prompts[-1], 6) is None
    assert not Generated(SimpleNamespace(dtype=torch.bfloat16)).exact  # type: ignore[arg-type]


def test_models_are_put_back_whatever_happens(pair: Pair) -> None:
    before = [(m.config._attn_implementation, m.generation_config) for m in (pair.target, pair.draft)]
    with contextlib.suppress(RuntimeError), plain_models(pair):
        assert pair.target.config._attn_implementation == "sdpa"
        raise RuntimeError
    after = [(m.config._attn_implementation, m.generation_config) for m in (pair.target, pair.draft)]
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(before, after, strict=True))


def test_findings_are_sound_only_if_something_was_seen_and_every_damage_noticed() -> None:
    everything = dict.fromkeys(DAMAGES, True)
    assert CacheFindings("pd", sequences=3, damage=everything).ok
    assert not CacheFindings("pd", sequences=0, damage=everything).ok
    assert not CacheFindings("pd", sequences=3).ok
    assert not CacheFindings("pd", sequences=3, damage={**everything, "wrong length": False}).ok
    assert not CacheFindings("pd", sequences=3, damage=everything, failures=["keys: 1 > 0.1"]).ok


def test_a_peer_that_cannot_run_here_says_so(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: object, **options: object) -> None:
        raise AttributeError("no such method\nin this version")

    monkeypatch.setattr(type(pair.target), "generate_batch", absent)
    settings = dataclasses.replace(TINY, concurrencies=(1, 2))
    table = measure_peers(pair, settings, expected_of(NAME, pair), silent).set_index(["system", "requests"])
    gone = table.loc[("continuous batching", 2)]
    assert gone["note"] == "not available: AttributeError: no such method"
    assert pd.isna(gone["throughput_tokens_per_s"])
    others = table.drop(("continuous batching", 2))
    assert len(others) == 3
    assert (others["equal"] == others["checked"]).all()
    assert (others["checked"] == others.index.get_level_values("requests")).all()
    assert (others["throughput_tokens_per_s"] > 0).all()


def test_numbers_are_short() -> None:
    shown = [_short(x) for x in (12.345, 0.012345, 1234.5, 99.96, 0.0, float("nan"))]
    assert shown == ["12.3", "0.0123", "1,234", "100.0", "0", "-"]
