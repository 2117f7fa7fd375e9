"""The engines change how fast tokens come, never which."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engines.errors import InputError
from engines.live.model.fused import FusedDecoder
from engines.live.model.pairs import Pair, load_pair
from engines.live.serving.engine import Handle, LiveEngine
from engines.live.serving.serve import serve
from engines.policy.architecture import ARCHITECTURES, BASELINE, PD, PDV, Architecture, Step
from engines.policy.draft_length import AdaptiveDraftLength, DraftLength, FixedDraftLength, LoadAdaptiveDraftLength
from engines.policy.request import Request
from engines.record.metrics import PARTS, acceptance, decompose
from engines.record.run import Run
from engines.workload.workload import Workload
from experiments.checks.graphs import Even
from tests.engines.live.conftest import random_requests


def collect(
    engine: LiveEngine, workload: Workload, draft_length: DraftLength | None = None
) -> tuple[dict[int, Handle], Run]:
    handles: dict[int, Handle] = {}
    submit = engine.submit

    def keep(request: Request) -> Handle:
        handles[request.id] = submit(request)
        return handles[request.id]

    engine.submit = keep  # type: ignore[method-assign]
    try:
        return handles, serve(engine, workload, draft_length=draft_length)
    finally:
        engine.submit = submit  # type: ignore[method-assign]


def served(
    architecture: Architecture, pair: Pair, requests: tuple[Request, ...], concurrency: int
) -> dict[int, list[int]]:
    with LiveEngine(architecture, pair) as engine:
        handles, _ = collect(engine, Workload(requests, concurrency=concurrency))
    return {i: handle.result() for i, handle in handles.items()}


def generated(folder: Path, requests: tuple[Request, ...]) -> dict[int, list[int]]:
    """What transformers' own generate gives, one request at a time, ending at the end-of-sequence token."""
    target = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.float32)
    out = {}
    for request in requests:
        tokens = target.generate(torch.tensor([request.prompt]), max_new_tokens=request.max_tokens, do_sample=False)
        out[request.id] = tokens[0, request.prompt_tokens :].tolist()
    return out


@pytest.fixture(scope="module")
def requests_to_serve() -> tuple[Request, ...]:
    return random_requests(14, ignore_eos=False)


@pytest.fixture(scope="module")
def expected(
    pair: Pair, pair_folders: dict[str, Path], requests_to_serve: tuple[Request, ...]
) -> dict[int, list[int]]:
    return generated(
        pair_folders["llama" if pair.target.config.model_type == "llama" else "qwen3"], requests_to_serve
    )


@pytest.fixture(scope="module")
def llama_expected(pair_folders: dict[str, Path], requests_to_serve: tuple[Request, ...]) -> dict[int, list[int]]:
    return generated(pair_folders["llama"], requests_to_serve)


@pytest.mark.parametrize("concurrency", [1, 3, 10])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_greedy_output_equals_generate(
    name: str, concurrency: int, pair: Pair, requests_to_serve: tuple[Request, ...], expected: dict[int, list[int]]
) -> None:
    assert served(ARCHITECTURES[name], pair, requests_to_serve, concurrency) == expected


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_without_fusion_the_tokens_are_the_same(
    kind: str, pair_folders: dict[str, Path], requests_to_serve: tuple[Request, ...]
) -> None:
    pair = load_pair(pair_folders[kind], fused=False)
    assert not any(isinstance(forward, FusedDecoder) for forward in (pair.target_forward, pair.draft_forward))
    expected = generated(pair_folders[kind], requests_to_serve)
    assert served(PDV, pair, requests_to_serve, 10) == expected


def test_some_outputs_end_early_and_some_at_their_limit(
    requests_to_serve: tuple[Request, ...], expected: dict[int, list[int]]
) -> None:
    """Otherwise the comparison above would say nothing about ends of sequence."""
    lengths = {len(expected[r.id]) == r.max_tokens for r in requests_to_serve}
    assert lengths == {True, False}


@pytest.mark.parametrize("k", range(9))
def test_every_draft_length_gives_the_same_tokens(
    k: int, llama: Pair, llama_expected: dict[int, list[int]], requests_to_serve: tuple[Request, ...]
) -> None:
    architecture = PDV.replace(draft_length=FixedDraftLength(k))
    assert served(architecture, llama, requests_to_serve, 4) == llama_expected


@pytest.mark.parametrize(
    "architecture",
    [
        PDV.replace(draft_length=AdaptiveDraftLength(1, 8, 2, window=5, every=1)),
        PDV.replace(permits=1, hybrid_at_or_below=3),
        PD.with_batch_limits({Step.PREFILL: 4}),
        PD.replace(slots=2),
        BASELINE.replace(lanes=(dataclasses.replace(BASELINE.lanes[0], workers=8),)),
    ],
    ids=["adaptive", "one permit, hybrid to 3", "packed prefill", "two slots", "eight workers"],
)
def test_settings_do_not_change_tokens(
    architecture: Architecture,
    llama: Pair,
    llama_expected: dict[int, list[int]],
    requests_to_serve: tuple[Request, ...],
) -> None:
    assert served(architecture, llama, requests_to_serve, 10) == llama_expected


@pytest.mark.parametrize("architecture", [PD, PDV, BASELINE], ids=lambda a: a.name)
def test_the_draft_model_never_runs_where_nothing_is_drafted(
    architecture: Architecture, llama: Pair, llama_expected: dict[int, list[int]],
    requests_to_serve: tuple[Request, ...],
) -> None:  # fmt: skip
    """Not in prefill either, nor for tapes."""

    def unused(*args: object) -> torch.Tensor:
        pytest.fail("the draft model ran")

    alone = architecture.replace(draft_length=FixedDraftLength(0))
    with LiveEngine(alone, dataclasses.replace(llama, draft_forward=unused)) as engine:
        handles, run = collect(engine, Workload(requests_to_serve, concurrency=5))
    assert {i: handle.result() for i, handle in handles.items()} == llama_expected
    assert set(run.spans["segment"]) == {"prefill_target", "verify"}
    assert run.requests["drafted"].sum() == run.steps["draft_length"].sum() == 0
    assert (run.requests["verifications"] == run.requests["output_tokens"] - 1).all()
    assert all((tape == -1).all() for tape in run.tapes.values())


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("architecture", [PD, PDV], ids=lambda a: a.name)
def test_one_engine_serves_with_every_draft_length_within_its_own(
    architecture: Architecture, graphs: bool, llama: Pair, llama_expected: dict[int, list[int]],
    requests_to_serve: tuple[Request, ...],
) -> None:  # fmt: skip
    loads = LoadAdaptiveDraftLength(0, 6, window=4, probe_every=3)
    workload = Workload(requests_to_serve, concurrency=5)
    lengths = [FixedDraftLength(6), loads, FixedDraftLength(0), AdaptiveDraftLength(1, 3, 2), FixedDraftLength(2)]
    with LiveEngine(architecture.replace(draft_length=loads), llama, graphs=graphs, times=Even()) as engine:
        for length in lengths:
            handles, run = collect(engine, workload, length)
            assert {i: handle.result() for i, handle in handles.items()} == llama_expected
            assert run.info["architecture"] == architecture.replace(draft_length=length).to_dict()
            used = set(run.spans.loc[run.spans["segment"] == "verify", "draft_length"])
            assert used
            assert used <= set(range(length.minimum, length.maximum + 1))
            assert ("prefill_draft" in set(run.spans["segment"])) == (length.maximum > 0)
        for wide in (FixedDraftLength(7), LoadAdaptiveDraftLength(0, 8)):
            with pytest.raises(InputError, match=f"{wide.label}.*started for load0-6"):
                engine.record(draft_length=wide)


def test_a_refused_draft_length_changes_nothing(llama: Pair) -> None:
    with LiveEngine(PD.replace(draft_length=AdaptiveDraftLength(1, 3, 2)), llama) as engine:
        before = engine.architecture, engine.scheduler, engine.recorder
        for refused in (FixedDraftLength(0), LoadAdaptiveDraftLength(1, 3, 2)):
            with pytest.raises(InputError, match="draft_length"):
                engine.record(draft_length=refused)
        assert (engine.architecture, engine.scheduler, engine.recorder) == before


def test_drafts_are_accepted_and_rejected_in_these_tests(llama: Pair) -> None:
    """A pair that always or never agrees would not exercise the cache after a partial acceptance."""
    with LiveEngine(PD, llama) as engine:
        _, run = collect(engine, Workload(random_requests(10), concurrency=5))
    assert 0.15 < acceptance(run)["acceptance_rate"] < 0.85


def test_the_record_of_a_live_run_adds_up(llama: Pair) -> None:
    with LiveEngine(PDV, llama) as engine:
        handles, run = collect(engine, Workload(random_requests(12), concurrency=6))
    table = run.requests
    assert list(table["request"]) == sorted(handles)
    assert (table["drafted"] == table["accepted"] + table["rejected"] + table["discarded"]).all()
    assert [len(handles[i].tokens) for i in table["request"]] == table["output_tokens"].tolist()
    parts = decompose(run)
    assert (parts[PARTS].sum(axis=1) - parts["latency_s"]).abs().max() < 1e-9
    assert (parts[PARTS] > -1e-9).all().all()


def test_draft_and_verify_are_batched_across_requests(llama: Pair) -> None:
    with LiveEngine(PDV, llama) as engine:
        _, run = collect(engine, Workload(random_requests(12, longest=60), concurrency=10))
    assert run.spans.groupby("segment")["batch_size"].max()[["draft", "verify"]].min() >= 4


def test_a_prompt_is_computed_once(llama: Pair) -> None:
    """One prefill a request; later passes read 2 or 1 tokens (draft) and k + 1 (verify) a request."""
    seen: list[int] = []

    def counting(tokens: torch.Tensor, *args: object) -> torch.Tensor:
        seen.append(tokens.numel())
        return llama.target_forward(tokens, *args)  # type: ignore[arg-type]

    requests = random_requests(5, seed=8)
    served(PD, dataclasses.replace(llama, target_forward=counting), requests, 5)
    for request in requests:
        seen.remove(request.prompt_tokens)
    assert seen
    assert all(tokens % 5 == 0 and tokens <= 5 * len(requests) for tokens in seen)  # k + 1 = 5
