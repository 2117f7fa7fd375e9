"""Table updates around the model pass of a decode stage, as Triton kernels for CUDA tensors.

engines.live.kernels.table_updates documents the same functions in PyTorch. Programs that share the scratch slot race
on it. This is harmless: whatever they read from it stays within its rows, and they all leave the same lengths.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.live.kernels.dependent_launch import fence, launch_dependents_and_wait, supports_dependent_launch
from engines.live.kernels.tables import Candidates, Feed, Places, Tables

# Launch parameters. Tune them on a new kind of GPU.
FEED_TOKENS, FEED_WARPS = 128, 4
COLUMNS, COLUMNS_WARPS = 4096, 8  # COLUMNS: entries of the vocabulary that one program compares
KEEP_WARPS = 4

NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit(do_not_specialize=["total"])
def _feed(
    slots, table, lengths, drafts, draft_lengths, first, tokens, positions, rows, total, row_length,
    BACK: tl.constexpr, COUNT: tl.constexpr, DRAFTED: tl.constexpr, MOST_DRAFTS: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    # The next kernel must start only after this one has ended, because attention reads `first` before it waits.
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = token < total
    sequence, offset = token // COUNT, token % COUNT
    slot = tl.load(slots + sequence, mask=there, other=0)
    length = tl.load(lengths + slot, mask=there, other=BACK)
    start = length - BACK
    if DRAFTED:
        start += tl.load(draft_lengths + slot, mask=there, other=0)
    position = start + offset
    known = position < length
    row = slot * row_length + position
    fed = tl.load(table + row, mask=there & known, other=0)
    fed += tl.load(drafts + slot * MOST_DRAFTS + position - length, mask=there & ~known, other=0)
    tl.store(first + sequence, start, mask=there & (offset == 0))
    tl.store(tokens + token, fed, mask=there)
    tl.store(positions + token, position, mask=there)
    tl.store(rows + token, row, mask=there)
    fence(DEPENDENT)


def feed(tables: Tables, slots: Tensor, back: int, count: int, drafted: bool) -> Feed:
    total, dependent = len(slots) * count, supports_dependent_launch(slots.device)
    first, tokens, positions, rows = (slots.new_empty(size) for size in (len(slots), total, total, total))
    _feed[(triton.cdiv(total, FEED_TOKENS),)](
        slots, *tables, first, tokens, positions, rows, total, tables.tokens.shape[1],
        back, count, drafted, tables.drafts.shape[1], FEED_TOKENS, dependent,
        num_warps=FEED_WARPS, launch_pdl=dependent,
    )  # fmt: skip
    return Feed(first, tokens, Places(positions, rows))


@triton.jit
def _candidates(
    logits, tokens, tops, VOCABULARY: tl.constexpr, COLUMNS: tl.constexpr, DEPENDENT: tl.constexpr
):  # fmt: skip
    launch_dependents_and_wait(DEPENDENT)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    x = tl.load(logits + row * VOCABULARY + column, mask=column < VOCABULARY, other=-float("inf")).to(tl.float32)
    x = tl.where(x == x, x, float("inf"))  # a NaN would not equal any maximum
    top = tl.max(x, axis=0)
    place = row * tl.num_programs(1) + part
    tl.store(tokens + place, tl.min(tl.where(x == top, column, NO_TOKEN), axis=0))
    tl.store(tops + place, top)


def candidates(logits: Tensor) -> Candidates:
    (rows, vocabulary), dependent = logits.shape, supports_dependent_launch(logits.device)
    shape = (rows, triton.cdiv(vocabulary, COLUMNS))
    tokens, tops = (logits.new_empty(shape, dtype=dtype) for dtype in (torch.int32, torch.float32))
    _candidates[shape](
        logits.contiguous(), tokens, tops, vocabulary, COLUMNS, dependent,
        num_warps=COLUMNS_WARPS, launch_pdl=dependent,
    )  # fmt: skip
    return Candidates(tokens, tops)


@triton.jit
def _picked(tokens, tops, row, there, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the token with the largest logit of each row, int64; the first if several are equal."""
    if PARTS == 1:
        picked = tl.load(tokens + row, mask=there, other=0)
    else:
        part = tl.arange(0, BLOCK)
        place = row[:, None] * PARTS + part[None, :]
        held = there[:, None] & (part < PARTS)[None, :]
        top = tl.load(tops + place, mask=held, other=-float("inf"))
        token = tl.load(tokens + place, mask=held, other=NO_TOKEN)
        best = tl.max(top, axis=1)
        picked = tl.min(tl.where(top == best[:, None], token, NO_TOKEN), axis=1)
    return picked.to(tl.int64)


@triton.jit
def _keep_first_drafts(
    slots, table, lengths, drafts, draft_lengths, offered, tops, draft_agrees, row_length,
    MOST_DRAFTS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    launch_dependents_and_wait(DEPENDENT)
    sequence = tl.program_id(0)
    slot = tl.load(slots + sequence)
    last = tl.load(table + slot * row_length + tl.load(lengths + slot) - 1)
    after = tl.arange(0, 2)  # after the last known token but one, and after the last
    picked = _picked(offered, tops, sequence * 2 + after, after < 2, PARTS, BLOCK)
    tl.store(draft_agrees + sequence + after, picked == last, mask=after == 0)
    tl.store(drafts + slot * MOST_DRAFTS + after - 1, picked, mask=after == 1)
    tl.store(draft_lengths + slot, 1)


def keep_first_drafts(tables: Tables, slots: Tensor, offered: Candidates) -> Tensor:
    draft_agrees = slots.new_empty(len(slots), dtype=torch.bool)
    _keep_first_drafts[(len(slots),)](
        slots, *tables, *_parts(offered), draft_agrees, tables.tokens.shape[1], tables.drafts.shape[1],
        **_options(offered),
    )  # fmt: skip
    return draft_agrees


@triton.jit(do_not_specialize=["scratch"])
def _keep_next_drafts(
    slots, drafts, draft_lengths, offered, tops, scratch,
    MOST_DRAFTS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    launch_dependents_and_wait(DEPENDENT)
    sequence = tl.program_id(0)
    slot = tl.load(slots + sequence)
    drafted = tl.load(draft_lengths + slot)
    row = sequence + tl.arange(0, 1)
    picked = _picked(offered, tops, row, row == sequence, PARTS, BLOCK)
    tl.store(drafts + slot * MOST_DRAFTS + drafted + tl.arange(0, 1), picked)
    tl.debug_barrier()  # all threads must have read the number of drafts
    tl.store(draft_lengths + slot, tl.where(slot == scratch, 1, drafted + 1))


def keep_next_drafts(tables: Tables, slots: Tensor, offered: Candidates) -> None:
    _keep_next_drafts[(len(slots),)](
        slots, tables.drafts, tables.draft_lengths, *_parts(offered), len(tables.lengths) - 1,
        tables.drafts.shape[1], **_options(offered),
    )  # fmt: skip


@triton.jit(do_not_specialize=["scratch"])
def _keep_verified(
    slots, table, lengths, drafts, draft_lengths, offered, tops, out, row_length, scratch,
    K: tl.constexpr, MOST_DRAFTS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    launch_dependents_and_wait(DEPENDENT)
    sequence = tl.program_id(0)
    slot = tl.load(slots + sequence)
    length = tl.load(lengths + slot)
    place = tl.arange(0, ROWS)
    there = place <= K
    picked = _picked(offered, tops, sequence * (K + 1) + place, there, PARTS, BLOCK)
    real = (place < K) & (place < tl.load(draft_lengths + slot))
    draft = tl.load(drafts + slot * MOST_DRAFTS + place, mask=real, other=0)
    matched = tl.min(tl.where(real & (draft == picked), ROWS, place), axis=0)  # the first place that does not match
    result = out + sequence * (K + 2) + place
    tl.store(result + 1, picked, mask=there)
    tl.store(result, matched.to(tl.int64) + tl.zeros([ROWS], tl.int64), mask=place == 0)
    tl.store(table + slot * row_length + length + place, picked, mask=there)
    tl.debug_barrier()  # all threads must have read the lengths
    tl.store(lengths + slot, tl.where(slot == scratch, 2, length + matched + 1))
    tl.store(draft_lengths + slot, tl.where(slot == scratch, 1, 0))


def keep_verified(tables: Tables, slots: Tensor, k: int, offered: Candidates) -> Tensor:
    out = slots.new_empty(len(slots), k + 2)
    _keep_verified[(len(slots),)](
        slots, *tables, *_parts(offered), out, tables.tokens.shape[1], len(tables.lengths) - 1,
        k, tables.drafts.shape[1], max(2, triton.next_power_of_2(k + 1)), **_options(offered),
    )  # fmt: skip
    return out


def _parts(offered: Candidates) -> tuple[Tensor, Tensor]:
    return offered.tokens, offered.tokens if offered.logits is None else offered.logits


def _options(offered: Candidates) -> dict[str, int | bool]:
    parts, dependent = offered.tokens.shape[1], supports_dependent_launch(offered.tokens.device)
    return {
        "PARTS": parts, "BLOCK": triton.next_power_of_2(parts), "DEPENDENT": dependent,
        "num_warps": KEEP_WARPS, "launch_pdl": dependent,
    }  # fmt: skip
