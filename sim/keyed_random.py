"""Uniform random numbers keyed by (seed, request, purpose): those of numpy.random.default_rng of these three.

Seeding a generator takes numpy ten times as long as drawing 128 numbers. For requests that are asked for in order of
their ids, the seeds of many are therefore computed at once, as arrays, and put into one generator.
"""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np

BLOCK = 256  # requests
_WORD, _POOL = 2**32, 4
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645  # of PCG64
_WHOLE = 2**128 - 1


def uniform(seed: int, request: int, purpose: int, count: int) -> np.ndarray:
    """Draw `count` numbers from 0 to 1. Drawing more never changes earlier ones."""
    return _numbers(seed, purpose).draw(request, count)


@lru_cache(maxsize=64)
def _numbers(seed: int, purpose: int) -> _Numbers:
    return _Numbers(seed, purpose)


class _Numbers(threading.local):
    """The generator of one thread."""

    def __init__(self, seed: int, purpose: int) -> None:
        self._seed, self._purpose = seed, purpose
        self._bits = np.random.PCG64(0)
        self._generator = np.random.Generator(self._bits)
        self._words: list[list[int]] = []  # the seeds of requests from `_first` on
        self._first = self._last = -2

    def draw(self, request: int, count: int) -> np.ndarray:
        place, follows = request - self._first, request == self._last + 1
        self._last = request
        if not 0 <= place < len(self._words):
            if not follows or self._seed >= _WORD or request + BLOCK > _WORD:
                return np.random.default_rng((self._seed, request, self._purpose)).random(count)
            self._words, self._first, place = seeds(self._seed, request, BLOCK, self._purpose), request, 0
        high, low, sequence_high, sequence_low = self._words[place]
        increment = ((sequence_high << 64 | sequence_low) << 1 | 1) & _WHOLE
        state = ((increment + (high << 64 | low)) * _MULTIPLIER + increment) & _WHOLE
        self._bits.state = {
            "bit_generator": "PCG64", "state": {"state": state, "inc": increment}, "has_uint32": 0, "uinteger": 0,
        }  # fmt: skip
        return self._generator.random(count)


def seeds(seed: int, first: int, count: int, purpose: int) -> list[list[int]]:
    """Return numpy.random.SeedSequence((seed, request, purpose)).generate_state(4, uint64) of `count` requests from
    `first` on. All are below 2**32."""
    requests = np.arange(first, first + count, dtype=np.uint32)
    constant = 0x43B0D7E5

    def hashed(values: np.ndarray, multiplier: int = 0x931E8875) -> np.ndarray:
        nonlocal constant
        mixed = values ^ np.uint32(constant)
        constant = constant * multiplier % _WORD
        mixed = mixed * np.uint32(constant)
        return mixed ^ (mixed >> np.uint32(16))

    entropy = [np.full_like(requests, seed), requests, np.full_like(requests, purpose), np.zeros_like(requests)]
    pool = [hashed(values) for values in entropy]
    for source in range(_POOL):
        for place in range(_POOL):
            if place != source:
                mixed: np.ndarray = np.uint32(0xCA01F9DD) * pool[place] - np.uint32(0x4973F715) * hashed(pool[source])
                pool[place] = mixed ^ (mixed >> np.uint32(16))
    constant = 0x8B51F9DD
    words = np.stack([hashed(pool[i % _POOL], 0x58F38DED) for i in range(2 * _POOL)], axis=1).astype(np.uint64)
    return (words[:, ::2] | words[:, 1::2] << np.uint64(32)).tolist()
