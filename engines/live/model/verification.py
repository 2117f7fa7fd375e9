"""Pick tokens from logits, greedily or by sampling.

Greedy decoding picks the largest logit. Sampling picks the largest of logit / temperature + Gumbel noise, which is a
sample from the softmax. The noise depends only on (key of the request, position, token). Draft and target share it,
and a draft is accepted if both pick the same token. The output is therefore, token by token, what the target alone
would have sampled with that noise. It follows the target's distribution exactly, whatever k, lane or batch (the
coupling of Daliri, Musco and Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding",
2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

_Integers = TypeVar("_Integers", Tensor, np.ndarray)  # int64, which wraps


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_GAMMA, _MIX_1, _MIX_2 = (_signed(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(value: _Integers, bits: int) -> _Integers:
    """Logical shift right of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: _Integers) -> _Integers:
    """The SplitMix64 finaliser (Steele, Lea and Flood, 2014)."""
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)


def request_keys(seeds: Sequence[int], requests: Sequence[int]) -> np.ndarray:
    """Return the key of each request's random numbers, [requests] int64.

    seeds, requests: seed and id of each request. They are mixed so that no two streams are shifts of one another.
    """
    return _mix(_mix(np.asarray(seeds, dtype=np.int64)) + np.asarray(requests, dtype=np.int64))


def request_key(seed: int, request: int) -> int:
    """Return the key of one request."""
    return int(request_keys([seed], [request])[0])


def gumbel(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Return Gumbel noise for each row and token, [rows, vocabulary] float32. keys, positions: [rows] int64."""
    row = _mix(keys + positions * _GAMMA)
    token = torch.arange(1, vocabulary + 1, device=keys.device) * _GAMMA
    uniform = (_shift(_mix(row[:, None] + token), 41).float() + 0.5) * 2.0**-23  # exact in float32: never 0, never 1
    return -torch.log(-torch.log(uniform))


def pick(logits: Tensor, temperatures: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
    """Return the token that each row picks, [rows] int64.

    logits: [rows, vocabulary]. temperatures: [rows] float32, 0 is greedy. keys: [rows] int64, those of the requests.
    positions: [rows] int64, position of the picked token in its sequence.
    """
    greedy = logits.argmax(-1)
    safe = temperatures.clamp(min=1e-6)[:, None]
    sampled = (logits.float() / safe + gumbel(keys, positions, logits.shape[-1])).argmax(-1)
    return torch.where(temperatures > 0, sampled, greedy)
