"""What goes wrong for one request stays with it: the others finish, nothing hangs, slots are freed."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engines.compiled import in_use
from engines.errors import InputError
from engines.live.model.pairs import Pair, make_pair
from engines.live.model.stages import Stages
from engines.live.serving.engine import LiveEngine, RequestError
from engines.live.serving.serve import serve
from engines.policy.architecture import ARCHITECTURES, PD, PDV, Lane, Step
from engines.policy.request import MOST_TOKENS, Request
from engines.record.run import Run
from engines.workload.workload import Workload
from tests.engines.live.conftest import VOCABULARY, random_requests, tiny_model

TIMEOUT_S = 30.0


def good(i: int, tokens: int = 12) -> Request:
    return Request(i, 5, tokens, prompt=(9, 10, 11, 12, 13))


@pytest.fixture(params=sorted(ARCHITECTURES))
def engine(request: pytest.FixtureRequest, llama: Pair) -> Iterator[LiveEngine]:
    with LiveEngine(ARCHITECTURES[request.param].replace(slots=4), llama) as engine:
        yield engine
        assert engine.scheduler.idle
        assert sorted(engine.scheduler.free_slots) == list(range(4))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Request(7, 500, 4, prompt=(5,) * 500), "prompt_tokens = 500"),
        (Request(7, 2, 4, prompt=(5, VOCABULARY)), f"prompt = {VOCABULARY}"),
        (Request(7, 2, 4, prompt=(5, -1)), "prompt = -1"),
        (Request(7, 3, 4, prompt=(5, 5)), "give 3 token ids"),
        (Request(7, 0, 4, prompt=()), "prompt_tokens = 0"),
        (Request(7, 1, 0, prompt=(5,)), "max_tokens = 0"),
        (Request(7, 1, 4, prompt=(5,), temperature=-1.0), "temperature = -1.0"),
        (good(0), "request 0 has not ended"),
    ],
    ids=["too long", "unknown token", "negative token", "wrong count", "empty", "no output", "temperature", "twice"],
)
def test_a_bad_request_is_refused_and_the_others_finish(engine: LiveEngine, bad: Request, message: str) -> None:
    handles = [engine.submit(good(i)) for i in range(3)]
    refused = engine.submit(bad)
    with pytest.raises(RequestError, match=message):
        refused.result(TIMEOUT_S)
    assert [len(h.result(TIMEOUT_S)) for h in handles] == [12, 12, 12]


def test_a_request_for_more_than_can_ever_be_said_is_served_to_the_end_of_the_context(engine: LiveEngine) -> None:
    """Nothing is set aside for tokens that the context has no room for."""
    handles = [engine.submit(good(0)), engine.submit(good(1, MOST_TOKENS)), engine.submit(good(2))]
    said = [len(handle.result(TIMEOUT_S)) for handle in handles]
    assert said == [12, engine.max_context - 5, 12]
    assert handles[1].state is not None
    assert handles[1].state.finish_reason == "context"


ODD = [
    {"max_tokens": 10**13}, {"max_tokens": 2**80}, {"max_tokens": 5.5}, {"max_tokens": None}, {"max_tokens": True},
    {"temperature": float("nan")},
    {"temperature": float("inf")}, {"temperature": "hot"}, {"seed": 2**64}, {"id": 2**64}, {"id": "seven"},
    {"prompt_tokens": 3.0}, {"prompt": (9, 10.5, 11)}, {"prompt": (9, True, 11)}, {"prompt": 9}, {"prompt": None},
]  # fmt: skip


def test_odd_requests_are_rejected_alone_and_recorded(engine: LiveEngine, tmp_path: Path) -> None:
    """They are submitted while others run, and the record of all can be saved and read."""
    recorder = engine.record()
    sound = [engine.submit(Request(i, 3, 200, prompt=(9, 10, 11))) for i in range(3)]
    odd = [dataclasses.replace(Request(3 + i, 3, 6, prompt=(9, 10, 11)), **change) for i, change in enumerate(ODD)]
    for request in odd:
        with pytest.raises(RequestError, match=" = "):  # says what was wrong
            engine.submit(request).result(TIMEOUT_S)
    with pytest.raises(RequestError, match="has not ended"):
        engine.submit(sound[0].request).result(TIMEOUT_S)
    assert all(handle.result(TIMEOUT_S) for handle in sound)
    info = {"kind": "live", "architecture": engine.architecture.to_dict(), "workload": {}}
    table = Run.load(recorder.run(info).save(tmp_path)).requests
    nameless = sum("id" in change for change in ODD)
    assert table["status"].value_counts().to_dict() == {"rejected": len(ODD) - nameless, "finished": 3}


def test_what_fails_while_a_request_is_taken_fails_that_request_alone(
    engine: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that it needs is there before the scheduler hears of it, so nothing is left behind."""

    def no_memory(*args: object) -> None:
        raise MemoryError("no room for a tape")

    handle = engine.submit(good(0))
    with monkeypatch.context() as patch:
        patch.setattr("engines.live.serving.engine.TapeBuilder", no_memory)
        with pytest.raises(RequestError, match="no room for a tape"):
            engine.submit(good(1)).result(TIMEOUT_S)
    assert len(handle.result(TIMEOUT_S)) == 12
    assert len(engine.submit(good(1)).result(TIMEOUT_S)) == 12


def test_threads_end_even_if_what_is_told_of_the_end_fails(llama: Pair) -> None:
    def broken(handle: object) -> None:
        raise ZeroDivisionError("told")

    engine = LiveEngine(PD.replace(slots=1), llama).__enter__()
    with engine.quiet():
        engine.record(on_end=broken)
        engine.submit(good(0))
        with pytest.raises(ZeroDivisionError):
            engine.close()
    assert not {f"{lane.name}-0" for lane in PD.lanes} & {thread.name for thread in threading.enumerate()}


def test_cancelled_while_waiting(engine: LiveEngine) -> None:
    handles = [engine.submit(good(i, 60)) for i in range(5)]  # the fifth waits: four slots
    engine.cancel(4)
    with pytest.raises(RequestError, match="cancelled"):
        handles[4].result(TIMEOUT_S)
    assert handles[4].tokens == []
    assert all(len(h.result(TIMEOUT_S)) == 60 for h in handles[:4])


def test_cancelled_while_running(engine: LiveEngine) -> None:
    handles = [engine.submit(good(i, 120)) for i in range(3)]
    while not handles[1].tokens:
        time.sleep(0.001)
    engine.cancel(1)
    with pytest.raises(RequestError, match="cancelled"):
        handles[1].result(TIMEOUT_S)
    assert 0 < len(handles[1].tokens) < 120
    assert all(len(handles[i].result(TIMEOUT_S)) == 120 for i in (0, 2))
    state = handles[1].state
    assert state is not None
    assert state.drafted == state.accepted + state.rejected + state.discarded


def test_cancelling_what_is_not_there_is_harmless(engine: LiveEngine) -> None:
    engine.cancel(99)
    assert len(engine.submit(good(0)).result(TIMEOUT_S)) == 12


@pytest.mark.parametrize("stage", ["prefill_target", "draft", "verify"])
def test_an_exception_in_a_lane_fails_the_request_concerned(
    engine: LiveEngine, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stage == "draft" and not engine.architecture.drafts:
        pytest.skip("nothing is drafted")
    run = getattr(engine.stages, stage)
    poisoned: set[int] = set()

    def fail_for_poisoned(slots: torch.Tensor, *args: object) -> object:
        if poisoned & set(slots.tolist()):
            if len(slots) == 1:  # this one fails; whoever gets its slot next is well
                poisoned.clear()
            raise RuntimeError("the kernel broke")
        return run(slots, *args)

    monkeypatch.setattr(engine.stages, stage, fail_for_poisoned)
    expected = [engine.submit(good(0, 40)).result(TIMEOUT_S)]
    with engine.lock:  # all wait in one queue; the lowest free slot is request 10's
        poisoned.add(engine.scheduler.free_slots[0])
        handles = [engine.submit(good(10 + i, 40)) for i in range(3)]
    with pytest.raises(RequestError, match="the kernel broke"):
        handles[0].result(TIMEOUT_S)
    assert [h.result(TIMEOUT_S) for h in handles[1:]] == expected * 2


def test_a_full_queue_refuses_and_recovers(llama: Pair) -> None:
    with LiveEngine(PDV.replace(slots=1, queue_limit=2), llama) as engine:
        with engine.lock:
            handles = [engine.submit(good(i)) for i in range(6)]
        refused = [h for h in handles if h.error]
        assert len(refused) == 3  # one in the slot, two in the queue
        assert all("queue_limit" in h.error for h in refused)
        assert all(len(h.result(TIMEOUT_S)) == 12 for h in handles if h not in refused)
        assert len(engine.submit(good(9)).result(TIMEOUT_S)) == 12


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_shutdown_with_work_in_flight(name: str, llama: Pair) -> None:
    with LiveEngine(ARCHITECTURES[name].replace(slots=3), llama) as engine:
        handles = [engine.submit(good(i, 150)) for i in range(8)]
        while not handles[0].tokens:
            time.sleep(0.001)
    assert all(h.done for h in handles)
    assert any(h.error == "cancelled" for h in handles)
    assert sorted(engine.scheduler.free_slots) == [0, 1, 2]
    assert "shut down" in engine.submit(good(99)).error
    lane_threads = {f"{lane.name}-0" for lane in engine.architecture.lanes}
    assert not lane_threads & {t.name for t in threading.enumerate()}


@pytest.mark.skipif(in_use(), reason="no method of a compiled class can be replaced")
def test_a_fault_of_the_engine_itself_reaches_every_request(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with LiveEngine(PD, llama) as engine:

        def broken(*args: object) -> None:
            raise ZeroDivisionError("bookkeeping")

        monkeypatch.setattr(engine.scheduler, "complete", broken)
        handle = engine.submit(good(0))
        with pytest.raises(RequestError, match=r"engine failed.*bookkeeping"):
            handle.result(TIMEOUT_S)


def test_the_context_limit_ends_a_request(llama: Pair) -> None:
    with LiveEngine(PD, llama, max_context=20) as engine:
        handle = engine.submit(good(0, 100))
        assert len(handle.result(TIMEOUT_S)) == 15
        assert handle.state is not None
        assert handle.state.finish_reason == "context"


def test_refused_requests_of_a_closed_loop_do_not_stop_it(llama: Pair) -> None:
    bad = tuple(Request(100 + i, 1, 1, prompt=(VOCABULARY,)) for i in range(1500))
    workload = Workload((*random_requests(2), *bad, *random_requests(4)[2:]), concurrency=2)
    with LiveEngine(PD, llama) as engine:
        run = serve(engine, workload)
    assert run.requests["status"].value_counts().to_dict() == {"rejected": 1500, "finished": 4}


def test_models_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="vocabulary of 50"):
        make_pair("odd", tiny_model("llama", 2), tiny_model("llama", 1, vocab_size=50))
    sliding = tiny_model("qwen3", 1, use_sliding_window=True, sliding_window=16, max_window_layers=0)
    with pytest.raises(InputError, match="full attention"):
        make_pair("sliding", tiny_model("qwen3", 2), sliding)


def test_a_context_beyond_the_models_is_refused(llama: Pair) -> None:
    with pytest.raises(InputError, match="max_context = 192"):
        LiveEngine(PD, llama, max_context=192)


def test_more_slots_than_memory_holds_are_refused_with_the_numbers(llama: Pair) -> None:
    with pytest.raises(InputError, match=r"slots = 1000000: \d+ fit .*GiB is free"):
        LiveEngine(PD.replace(slots=1_000_000), llama)


def test_a_draft_length_that_leaves_no_room_is_refused(llama: Pair) -> None:
    longest = llama.max_context - 3
    Stages(llama, 1, longest)
    with pytest.raises(InputError, match=f"draft_length = {longest + 1}: .*use at most {longest}"):
        Stages(llama, 1, longest + 1)


def test_lanes_on_two_devices_are_refused_for_now(llama: Pair) -> None:
    lanes = (Lane("prefill", {Step.PREFILL: 1}), Lane("decode", {Step.DRAFT_VERIFY: 2}, device=1))
    with pytest.raises(InputError, match=r"lanes\.device"):
        LiveEngine(PD.replace(lanes=lanes), llama)
