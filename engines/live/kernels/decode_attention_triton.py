"""Attention of a few new tokens per sequence over the slot pool, as one Triton kernel.

Draft and verify read a whole context for 1 to 9 new tokens, so they take as long as reading keys and values once. The
query heads that share a key-value head are stacked with the new tokens into one small matrix. Each program handles a
part of one sequence's context for one key-value head. If there are few sequences, the context is split over several
programs (flash-decoding: Dao, Haziza, Massa and Sizov, 2023). The last program to finish merges the partial results,
so a single launch is enough.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.live.kernels.dependent_launch import LINE, prefetch_l2, processors_of, supports_dependent_launch

MOST_ROWS = 128  # most new tokens times query heads per key-value head that fit one program
MOST_SPLITS = 16
LEAST_SHARED_BYTES = 160 * 1024  # per program, on a device for which the launches below are made
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class LaunchConfig:
    """How the kernel is launched.

    keys: how many a program loads at a time. splits: how many programs share a context, a power of two up to 16; None
    for as many as fill the device.
    """

    keys: int
    warps: int
    stages: int
    splits: int | None = None


# By (head dimension, rows of the query matrix), for values of two bytes. On a new kind of GPU, tune them with
# `pdv check kernels`.
CONFIGS = {
    (64, 16): LaunchConfig(keys=64, warps=4, stages=3),
    (64, 32): LaunchConfig(keys=64, warps=4, stages=3),
    (64, 64): LaunchConfig(keys=64, warps=4, stages=3),
    (64, 128): LaunchConfig(keys=64, warps=8, stages=3),
    (128, 16): LaunchConfig(keys=64, warps=4, stages=4),
    (128, 32): LaunchConfig(keys=64, warps=4, stages=3),
    (128, 64): LaunchConfig(keys=64, warps=4, stages=3),
    (128, 128): LaunchConfig(keys=64, warps=8, stages=2),
}
OTHER = LaunchConfig(keys=32, warps=4, stages=2)
SPLIT = {  # for a split context, with 16 or 32 rows, by head dimension
    64: LaunchConfig(keys=128, warps=4, stages=2),
    128: LaunchConfig(keys=128, warps=4, stages=3),
}
SPLIT_KEYS = 128
TOGETHER = {64: 4, 128: 1}  # programs of a split context that run on a processor at once, by head dimension


@triton.jit
def _merge(
    parts, part_logs, part_row, real, used_splits, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Merge the partial results of one context, each weighted by its share of the softmax.

    Loads bypass the first-level cache, which may not show what other processors have stored.
    """
    dim = tl.arange(0, HEAD_DIM)
    split = tl.arange(0, SPLITS)
    there = real[:, None] & (split < used_splits)[None, :]
    logs = tl.load(
        part_logs + part_row[:, None] + split[None, :] * STRIDE, mask=there, other=-float("inf"), cache_modifier=".cg"
    )
    top = tl.where(real, tl.max(logs, axis=1), 0.0)
    total = tl.where(real, tl.sum(tl.exp2(logs - top[:, None]), axis=1), 1.0)
    merged = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for i in tl.static_range(SPLITS):
        row = part_row + i * STRIDE
        here = real & (tl.full([ROWS], i, tl.int32) < used_splits)
        log = tl.load(part_logs + row, mask=here, other=-float("inf"), cache_modifier=".cg")
        part = tl.load(
            parts + row[:, None] * HEAD_DIM + dim[None, :], mask=here[:, None], other=0.0, cache_modifier=".cg"
        )
        merged += part * (tl.exp2(log - top) / total)[:, None]
    return merged


@triton.jit
def _attend(
    query, keys, values, slots, first, out, parts, part_logs, arrivals, scale, slot_stride,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, LINES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    kv_head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    known = tl.load(first + sequence).to(tl.int32)
    blocks = tl.cdiv(known + QUERIES, KEYS)
    blocks_each = tl.cdiv(blocks, SPLITS)
    used_splits = tl.cdiv(blocks, blocks_each)
    if split >= used_splits:
        return
    begin = split * blocks_each * KEYS
    end = tl.minimum(begin + blocks_each * KEYS, known + QUERIES)

    # Row r is new token r // GROUP of the sequence, and head r % GROUP of those that share this key-value head.
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, HEAD_DIM)
    token = row // GROUP
    real = row < QUERIES * GROUP
    head = kv_head * GROUP + row % GROUP
    place = ((sequence.to(tl.int64) * QUERIES + token) * (KV_HEADS * GROUP) + head)[:, None] * HEAD_DIM + dim[None, :]
    last_seen = known + token

    offset = tl.load(slots + sequence).to(tl.int64) * slot_stride  # int64: a pool may have more than 2^31 elements
    offset += begin.to(tl.int64) * (KV_HEADS * HEAD_DIM) + kv_head * HEAD_DIM
    key_row = tl.arange(0, KEYS)
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        # Slots, lengths and all keys but the newest were written before the previous kernel started.
        line = tl.minimum(key_row, end - begin - 1)[:, None] * (KV_HEADS * HEAD_DIM)
        line += tl.arange(0, LINES)[None, :] * (HEAD_DIM // LINES)
        prefetch_l2(keys + offset + line)
        prefetch_l2(values + offset + line)
        tl.extra.cuda.gdc_wait()
    q = tl.load(query + place, mask=real[:, None], other=0.0)
    within = key_row[:, None] * (KV_HEADS * HEAD_DIM) + dim[None, :]
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for at in range(begin, end, KEYS):
        there = (at + key_row < end)[:, None]
        k = tl.load(keys + offset + within, mask=there, other=0.0)
        v = tl.load(values + offset + within, mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where((at + key_row)[None, :] <= last_seen[:, None], scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        anchor = tl.where(new_top == -float("inf"), 0.0, new_top)  # for rows without a visible key so far
        weights = tl.exp2(scores - anchor[:, None])
        fade = tl.exp2(top - anchor)
        total = total * fade + tl.sum(weights, axis=1)
        found = tl.dot(weights.to(v.dtype), v, found * fade[:, None], input_precision="ieee")
        top = new_top
        offset += KEYS * KV_HEADS * HEAD_DIM
    found = found / tl.where(total > 0.0, total, 1.0)[:, None]
    if SPLITS == 1:
        tl.store(out + place, found.to(out.dtype.element_ty), mask=real[:, None])
    else:
        group = sequence.to(tl.int64) * KV_HEADS + kv_head
        part_row = group * SPLITS * (QUERIES * GROUP) + row
        mine = part_row + split * (QUERIES * GROUP)
        tl.store(parts + mine[:, None] * HEAD_DIM + dim[None, :], found, mask=real[:, None])
        tl.store(part_logs + mine, tl.where(total > 0.0, top + tl.log2(total), -float("inf")), mask=real)
        tl.debug_barrier()  # all threads must have stored before one of them counts the arrival
        if tl.atomic_add(arrivals + group, 1, sem="acq_rel") == used_splits - 1:
            merged = _merge(parts, part_logs, part_row, real, used_splits, QUERIES * GROUP, HEAD_DIM, SPLITS, ROWS)
            tl.store(out + place, merged.to(out.dtype.element_ty), mask=real[:, None])
            tl.store(arrivals + group, 0)  # ready for the next layer


def fits(query_tokens: int, heads: int, kv_heads: int, head_dim: int) -> bool:
    """Return whether the kernel supports this many new tokens per sequence at this shape."""
    power_of_two = head_dim & (head_dim - 1) == 0
    return power_of_two and 16 <= head_dim <= 256 and query_tokens * (heads // kv_heads) <= MOST_ROWS


class DecodeAttention:
    """The attention of one model pass, with scratch memory that its layers use in turn.

    slots, first: [batch] int64, see PackedBatch. query_tokens: new tokens per sequence. scale: factor on the scores.
    The launch depends only on shapes, so a pass can be captured as a CUDA graph. Make a new one for each pass: passes
    that run at the same time must not share scratch memory.
    """

    def __init__(
        self, slots: Tensor, first: Tensor, query_tokens: int, heads: int, pool: Tensor, scale: float,
        config: LaunchConfig | None = None,
    ) -> None:  # fmt: skip
        self.slots, self.first, self.query_tokens, self.scale = slots, first, query_tokens, scale * LOG2_E
        _, row_length, kv_heads, head_dim = pool.shape
        batch, group = len(slots), heads // kv_heads
        self._dependent = supports_dependent_launch(pool.device)
        self._rows = max(16, triton.next_power_of_2(query_tokens * group))
        config = config or CONFIGS.get((head_dim, self._rows), OTHER)
        self.splits = config.splits or _splits(batch * kv_heads, triton.cdiv(row_length, SPLIT_KEYS), pool)
        chosen = config.splits is None and self.splits > 1 and self._rows <= 32
        config = SPLIT.get(head_dim, config) if chosen else config
        self.config = replace(config, keys=max(16, config.keys * 2 // pool.element_size()))  # wide dtypes fit fewer
        size = (batch, kv_heads, self.splits, query_tokens * group) if self.splits > 1 else (0,)
        self._parts = torch.empty(*size, head_dim, dtype=torch.float32, device=pool.device)
        self._part_logs = torch.empty(size, dtype=torch.float32, device=pool.device)
        self._arrivals = torch.zeros(size[0] * kv_heads, dtype=torch.int32, device=pool.device)

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend over the pool of one layer, which must already contain the new tokens' keys and values.

        query: [batch * query_tokens, heads, head_dim]. Returns the same shape.
        """
        _, row_length, kv_heads, head_dim = keys.shape
        group, out, config = query.shape[1] // kv_heads, torch.empty_like(query), self.config
        _attend[(kv_heads, self.splits, len(self.slots))](
            query, keys, values, self.slots, self.first, out, self._parts, self._part_logs, self._arrivals,
            self.scale, row_length * kv_heads * head_dim, self.query_tokens, group, kv_heads, head_dim,
            self.splits, self._rows, config.keys, max(1, head_dim * keys.itemsize // LINE), self._dependent,
            num_warps=config.warps, num_stages=config.stages, launch_pdl=self._dependent,
        )  # fmt: skip
        return out


def _splits(groups: int, blocks: int, pool: Tensor) -> int:
    """Return how many programs share a context: a power of two, and at most the blocks of a context.

    They fill the device, but are few enough for all programs of a launch to run at once.
    """
    wanted = min(TOGETHER.get(pool.shape[-1], 1) * processors_of(pool.device) // groups, blocks, MOST_SPLITS)
    return 1 << (max(wanted, 1).bit_length() - 1)
