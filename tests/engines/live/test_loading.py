"""Slots are given to requests in one copy; a client that goes on at once finds the worker awake."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from engines.live.model.pairs import Pair, load_pair  # noqa: E402
from engines.live.model.stages import Stages  # noqa: E402
from engines.live.model.verification import request_keys  # noqa: E402
from engines.live.serving.engine import LiveEngine  # noqa: E402
from engines.live.serving.serve import serve  # noqa: E402
from engines.policy.architecture import BASELINE  # noqa: E402
from engines.workload.workload import FixedLength, make_workload, with_random_prompts  # noqa: E402

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("permutation:tiny+tiny-draft:alpha=0.8")


def test_every_slot_gets_its_own_prompt_and_randomness(pair: Pair) -> None:
    stages = Stages(pair, slots=4, max_draft_length=4, max_context=64)
    keys = request_keys([0, 7, 2**63 - 1], [5, 0, 2**40])
    stages.load([2, 0, 3], [[11, 12, 13], [21], [31, 32]], keys, [0.0, 0.7, 1.5])
    assert stages.lengths.tolist() == [1, 2, 3, 2, 2]  # slots 1 and 4 (scratch) are as they were
    assert stages.tokens[:, :4].tolist() == [[21, 0, 0, 0], [0] * 4, [11, 12, 13, 0], [31, 32, 0, 0], [0] * 4]
    assert stages.keys.tolist() == [int(keys[1]), 0, int(keys[0]), int(keys[2]), 0]
    assert stages.temperatures.tolist() == pytest.approx([0.7, 0.0, 0.0, 1.5, 0.0])


def test_keys_are_those_of_splitmix64() -> None:
    """SplitMix64's own first outputs for the seed 0 are mixes of its increments (Steele, Lea and Flood, 2014)."""
    increment = 0x9E3779B97F4A7C15
    mask = (1 << 64) - 1

    def mixed(value: int) -> int:
        value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ value >> 27) * 0x94D049BB133111EB) & mask
        return value ^ value >> 31

    assert mixed(increment) == 0xE220A8397B1DCDAF
    for seed, request in [(0, 0), (1, 5), (2**63 - 1, 12345)]:
        key = mixed((mixed(seed) + request) & mask)
        assert int(request_keys([seed], [request])[0]) & mask == key


def test_a_client_that_goes_on_in_a_completion_finds_the_worker_awake(pair: Pair) -> None:
    """One worker that two clients keep busy is woken once; its next prefill comes at the moment at which a request
    ended, as in a simulation."""
    (worker,) = BASELINE.lanes
    alone = BASELINE.replace(lanes=(dataclasses.replace(worker, workers=1),), slots=2)
    workload = make_workload(6, FixedLength(4), FixedLength(6), concurrency=2)
    with LiveEngine(alone, pair, 64) as engine:
        run = serve(engine, with_random_prompts(workload, pair.vocabulary))
    works = run.spans.drop_duplicates("batch_id").sort_values("dispatched_s")
    assert works["back_to_back"].tolist() == [False] + [True] * (len(works) - 1)
    ends = set(run.requests["finish_s"])
    assert set(run.requests.sort_values("arrival_s")["arrival_s"][2:]) <= ends
