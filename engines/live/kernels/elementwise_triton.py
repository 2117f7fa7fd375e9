"""The element-wise operations of a decoder layer as Triton kernels for CUDA tensors, one launch each.

engines.live.kernels.elementwise documents the same functions in PyTorch. Sums, norms and rotations are computed in
float32, and each result is rounded where transformers rounds it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.live.kernels.dependent_launch import launch_dependents_and_wait, supports_dependent_launch

# Launch parameters. On a new kind of GPU, tune them with `pdv check kernels`.
NORM_WARPS = 16
ROTATE_HEADS, ROTATE_WARPS = 16, 4  # heads that one program rotates
GATE_COLUMNS, GATE_WARPS = 2048, 8


@triton.jit
def _add_rms_norm(
    hidden, residual, weight, out, eps,
    ADD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    launch_dependents_and_wait(DEPENDENT)
    columns = tl.arange(0, BLOCK)
    there = columns < WIDTH
    offset = tl.program_id(0).to(tl.int64) * WIDTH
    scale = tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    x = tl.load(residual + offset + columns, mask=there, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(hidden + offset + columns, mask=there, other=0.0).to(tl.float32)
        rounded = x.to(residual.dtype.element_ty)
        tl.store(residual + offset + columns, rounded, mask=there)
        x = rounded.to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    normed = normed.to(out.dtype.element_ty).to(tl.float32) * scale
    tl.store(out + offset + columns, normed.to(out.dtype.element_ty), mask=there)


def add_rms_norm(hidden: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    tokens, width = residual.shape
    out = torch.empty_like(residual)
    added, dependent = residual if hidden is None else hidden, supports_dependent_launch(residual.device)
    _add_rms_norm[(tokens,)](
        added, residual, weight, out, eps, hidden is not None, width, triton.next_power_of_2(width), dependent,
        num_warps=NORM_WARPS, launch_pdl=dependent,
    )  # fmt: skip
    return out


@triton.jit
def _rotate_and_store(
    qkv, rotations, head_norms, rows, query, keys, values, eps,
    NORM: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    launch_dependents_and_wait(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # heads of queries, then of keys, then of values
    half = tl.arange(0, HALF)
    is_query = head < HEADS
    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS)
    is_value = (head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS)
    turns = (head < HEADS + KV_HEADS)[:, None]

    left = qkv + token * ((HEADS + 2 * KV_HEADS) * 2 * HALF) + head[:, None] * (2 * HALF) + half[None, :]
    there = (is_query | is_key | is_value)[:, None]
    dtype = qkv.dtype.element_ty
    x = tl.load(left, mask=there, other=0.0)
    y = tl.load(left + HALF, mask=there, other=0.0)
    value_x, value_y = x, y
    if NORM:
        wide_x, wide_y = x.to(tl.float32), y.to(tl.float32)
        mean = tl.sum(wide_x * wide_x + wide_y * wide_y, axis=1) / (2 * HALF)
        scale = tl.rsqrt(mean + eps)[:, None]
        weight = head_norms + head[:, None] * (2 * HALF) + half[None, :]
        x = ((wide_x * scale).to(dtype).to(tl.float32) * tl.load(weight, mask=turns, other=0.0)).to(dtype)
        y = ((wide_y * scale).to(dtype).to(tl.float32) * tl.load(weight + HALF, mask=turns, other=0.0)).to(dtype)
    cos = tl.load(rotations + token * (2 * HALF) + half)[None, :].to(tl.float32)
    sin = tl.load(rotations + token * (2 * HALF) + HALF + half)[None, :].to(tl.float32)
    x, y = x.to(tl.float32), y.to(tl.float32)
    turned_x = ((x * cos).to(dtype).to(tl.float32) - (y * sin).to(dtype).to(tl.float32)).to(dtype)
    turned_y = ((y * cos).to(dtype).to(tl.float32) + (x * sin).to(dtype).to(tl.float32)).to(dtype)

    place = query + token * (HEADS * 2 * HALF) + head[:, None] * (2 * HALF) + half[None, :]
    tl.store(place, turned_x, mask=is_query[:, None])
    tl.store(place + HALF, turned_y, mask=is_query[:, None])
    row = tl.load(rows + token).to(tl.int64) * (KV_HEADS * 2 * HALF)
    place = keys + row + (head - HEADS)[:, None] * (2 * HALF) + half[None, :]
    tl.store(place, turned_x, mask=is_key[:, None])
    tl.store(place + HALF, turned_y, mask=is_key[:, None])
    place = values + row + (head - HEADS - KV_HEADS)[:, None] * (2 * HALF) + half[None, :]
    tl.store(place, value_x, mask=is_value[:, None])
    tl.store(place + HALF, value_y, mask=is_value[:, None])


def rotate_and_store(
    qkv: Tensor, rotations: Tensor, head_norms: Tensor | None, eps: float, rows: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    tokens, (kv_heads, head_dim) = len(qkv), keys.shape[-2:]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    query, dependent = qkv.new_empty(tokens, heads, head_dim), supports_dependent_launch(qkv.device)
    _rotate_and_store[(tokens, triton.cdiv(heads + 2 * kv_heads, ROTATE_HEADS))](
        qkv, rotations, qkv if head_norms is None else head_norms, rows, query, keys, values, eps,
        head_norms is not None, heads, kv_heads, head_dim // 2, ROTATE_HEADS, dependent,
        num_warps=ROTATE_WARPS, launch_pdl=dependent,
    )  # fmt: skip
    return query


@triton.jit
def _silu_mul(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    launch_dependents_and_wait(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = columns < WIDTH
    gate = tl.load(gate_up + token * (2 * WIDTH) + columns, mask=there, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * (2 * WIDTH) + WIDTH + columns, mask=there, other=0.0).to(tl.float32)
    open_gate = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + token * WIDTH + columns, (open_gate * up).to(out.dtype.element_ty), mask=there)


def silu_mul(gate_up: Tensor) -> Tensor:
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out, dependent = gate_up.new_empty(tokens, width), supports_dependent_launch(gate_up.device)
    _silu_mul[(tokens, triton.cdiv(width, GATE_COLUMNS))](
        gate_up, out, width, GATE_COLUMNS, dependent, num_warps=GATE_WARPS, launch_pdl=dependent
    )
    return out
