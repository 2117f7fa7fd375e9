"""The Triton kernels compute what the PyTorch functions of the same names do.

Without a GPU they run in Triton's interpreter (tests/conftest.py), where what costs time is every operation of every
program, whatever its size. So there attention meets every pair of settings, and only a GPU all of them together.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from engines.live.kernels import elementwise
from engines.live.kernels.decode_attention import attend_gathered
from engines.live.model.attention import PackedBatch
from engines.live.model.kv_cache import SlotPool

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="triton is not installed, so its kernels are not checked")

from engines.live.kernels import decode_attention_triton, elementwise_triton  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16]
PRODUCT_DTYPES = DTYPES if DEVICE == "cuda" else [torch.float32, torch.float16]  # it multiplies no bfloat16 either


def close(actual: Tensor, expected: Tensor) -> bool:
    """Within float32 rounding, or a rounding of the result; the interpreter cuts bfloat16 instead, many times."""
    rounding = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-7 if DEVICE == "cuda" else 2**-5}
    tolerance = rounding[actual.dtype]
    return torch.allclose(actual.float().cpu(), expected.float(), atol=tolerance, rtol=tolerance)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


def on_device(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.clone().to(DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("added", [True, False], ids=["added", "alone"])
def test_add_rms_norm(added: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = random(5, 48, dtype=dtype) if added else None
    residual, weight = random(5, 48, dtype=dtype), random(48, dtype=dtype)
    theirs = on_device(hidden, residual, weight)
    normed = elementwise_triton.add_rms_norm(*theirs, 1e-5)
    assert close(normed, elementwise.add_rms_norm(hidden, residual, weight, 1e-5))
    assert close(theirs[1], residual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "normed"), [(4, 4, False), (6, 2, True), (5, 1, True)])
def test_rotate_and_store(heads: int, kv_heads: int, normed: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    tokens, head_dim = 7, 16
    qkv = random(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    angles = torch.rand(tokens, head_dim // 2) * 7
    rotations = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
    norms = random(heads + kv_heads, head_dim, dtype=dtype) if normed else None
    rows = torch.randperm(3 * 11)[:tokens]
    keys, values = (torch.full((3, 11, kv_heads, head_dim), 9.0, dtype=dtype) for _ in range(2))
    theirs = on_device(qkv, rotations, norms, rows, keys, values)
    query = elementwise_triton.rotate_and_store(*theirs[:3], 1e-6, *theirs[3:])
    assert close(query, elementwise.rotate_and_store(qkv, rotations, norms, 1e-6, rows, keys, values))
    assert close(theirs[4], keys)
    assert close(theirs[5], values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    gate_up = random(3, 2 * 1100, dtype=dtype)
    assert close(elementwise_triton.silu_mul(gate_up.to(DEVICE)), elementwise.silu_mul(gate_up))


class Shape(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int


class Case(NamedTuple):
    """Keys and values of sequences in shuffled slots, all else in the pool not a number, and their queries."""

    query: Tensor
    keys: Tensor
    values: Tensor
    batch: PackedBatch


def make_case(shape: Shape, known: list[int], queries: int, dtype: torch.dtype) -> Case:
    torch.manual_seed(3)
    pool = object.__new__(SlotPool)
    pool.slots, pool.row_length = len(known) + 2, max(known) + queries + 3
    slots = torch.randperm(pool.slots)[: len(known)]
    size = (pool.slots + 1, pool.row_length, shape.kv_heads, shape.head_dim)
    keys, values = (torch.full(size, torch.nan, dtype=dtype) for _ in range(2))
    for slot, first in zip(slots, known, strict=True):
        for table in (keys, values):
            table[slot, : first + queries] = random(first + queries, *size[2:], dtype=dtype)
    query = random(len(known) * queries, shape.heads, shape.head_dim, dtype=dtype)
    return Case(query, keys, values, PackedBatch(pool, slots, torch.tensor(known), queries))


def attended(case: Case, splits: int | None, scale: float = 0.3) -> Tensor:
    """What the kernel computes, the second time it runs: the first must leave its scratch memory ready."""
    config = decode_attention_triton.LaunchConfig(keys=16, warps=4, stages=2, splits=splits)
    query, keys, values, slots, first = on_device(*case[:3], case.batch.slots, case.batch.first)
    attend = decode_attention_triton.DecodeAttention(
        slots, first, case.batch.longest, query.shape[1], keys, scale, config
    )
    attend(query.flip(0), keys, values)
    return attend(query, keys, values)


def expected(case: Case, scale: float = 0.3) -> Tensor:
    tables = (table.nan_to_num().float() for table in (case.keys, case.values))
    return attend_gathered(case.query.float(), *tables, case.batch, scale)


SHAPES = [Shape(2, 2, 16), Shape(8, 1, 16), Shape(10, 2, 32)]
SETTINGS = (SHAPES, [1, 2, 5, 9], [1, 2, 8], PRODUCT_DTYPES)  # shape, queries, splits, dtype
PAIRED = [
    (SHAPES[(i + j) % 3], queries, splits, PRODUCT_DTYPES[(i + j) % 2])
    for i, queries in enumerate(SETTINGS[1]) for j, splits in enumerate(SETTINGS[2])
]  # fmt: skip
CASES = list(itertools.product(*SETTINGS)) if DEVICE == "cuda" else PAIRED


@pytest.mark.parametrize(
    ("shape", "queries", "splits", "dtype"), CASES, ids=["-".join(map(str, (*case[0], *case[1:]))) for case in CASES]
)
def test_decode_attention(shape: Shape, queries: int, splits: int, dtype: torch.dtype) -> None:
    case = make_case(shape, [0, 70, 15, 16 - queries % 16], queries, dtype)
    assert close(attended(case, splits), expected(case))


def test_every_pair_of_settings_is_met() -> None:
    for a, b in itertools.combinations(range(len(SETTINGS)), 2):
        assert {(case[a], case[b]) for case in CASES} == set(itertools.product(SETTINGS[a], SETTINGS[b]))


@pytest.mark.parametrize("wrong", ["first", "slots"])
def test_a_wrong_length_or_slot_shows(wrong: str) -> None:
    case = make_case(Shape(4, 2, 16), [40, 20, 30], 5, torch.float32)
    right = expected(case)
    other = getattr(case.batch, wrong).clone()
    other[1] = other[1] - 1 if wrong == "first" else other[0]
    setattr(case.batch, wrong, other)
    assert not close(attended(case, 2), right)


def test_what_the_kernel_does_not_take_is_known() -> None:
    assert decode_attention_triton.fits(9, 32, 4, 64)
    assert not decode_attention_triton.fits(17, 32, 4, 64)  # 136 rows
    assert not decode_attention_triton.fits(1, 4, 4, 80)
    assert not decode_attention_triton.fits(1, 4, 4, 8)
