"""Numbers keyed by (seed, request, purpose) are numpy's own, in whatever order requests are asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sim.keyed_random import BLOCK, seeds, uniform

ORDERS = {
    "in order": range(3 * BLOCK),
    "backwards": range(2 * BLOCK, 0, -1),
    "sparse": range(0, 10**9, 10**8),
    "again": [0, 1, 2, 0, 1, 2, BLOCK + 1, BLOCK + 2, 5],
    "large": [2**32 - BLOCK - 2 + i for i in range(5)] + [2**32 - 1 + i for i in range(5)] + [2**62, 2**62 + 1],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**70])
def test_numbers_are_numpys(seed: int, order: str) -> None:
    for request in ORDERS[order]:
        for purpose in (0, 1):
            expected = np.random.default_rng((seed, request, purpose)).random(5)
            assert uniform(seed, request, purpose, 5).tolist() == expected.tolist(), (request, purpose)


def test_threads_do_not_disturb_each_other() -> None:
    def draw(_: int) -> list[list[float]]:
        return [uniform(5, request, 0, 50).tolist() for request in range(300)]

    with ThreadPoolExecutor(4) as pool:
        assert all(found == draw(0) for found in pool.map(draw, range(8)))


def test_drawing_more_changes_nothing_before() -> None:
    for request in range(4):
        assert uniform(1, request, 0, 9)[:4].tolist() == uniform(1, request, 0, 4).tolist()


def test_seeds_are_those_of_a_seed_sequence() -> None:
    for request, words in enumerate(seeds(3, 1000, 20, 1), 1000):
        assert words == np.random.SeedSequence((3, request, 1)).generate_state(4, np.uint64).tolist()
