"""The kernels of engines.live.kernels.skinny_gemm: products of few tokens, fused with the operations around them.

A program computes COLUMNS outputs of all tokens, in a tile whose sides are powers of two: [ROWS, TILE]. SPLITS
programs may share the inputs of the same outputs; the last of them to end adds up the parts and continues. A program
loads what it needs at the end, such as residuals, at the beginning.

Tensors, all contiguous: x [tokens, INPUTS]; weight [outputs, INPUTS]; bias [outputs]; squares [parts, ROWS] float32,
sums of squares of a residual's columns per program that made them; parts [blocks, SPLITS, ROWS, TILE] float32,
partial sums of programs that share inputs; arrivals [COUNTERS] int32, how many programs of each block have stored
theirs.
"""

import triton
import triton.language as tl

from engines.live.kernels.dependent_launch import launch_dependents_and_wait, prefetch_l2


@triton.jit
def _begin(
    weights, INPUTS: tl.constexpr, SPLITS: tl.constexpr, STEP: tl.constexpr, AHEAD: tl.constexpr,
    NUMBERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Let the next kernel start, prefetch the first weights of the rows at `weights`, and wait for the previous one.

    Returns where this program's inputs begin and end.
    """
    each = (INPUTS // STEP + SPLITS - 1) // SPLITS * STEP
    first = tl.program_id(1) * each
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        if AHEAD > 0:
            early = min(first, INPUTS - AHEAD) + tl.arange(0, AHEAD // NUMBERS) * NUMBERS
            prefetch_l2(weights[:, None] + early[None, :])
        tl.extra.cuda.gdc_wait()
    return first, min(first + each, INPUTS)


@triton.jit
def _square_sums(squares, tokens, PARTS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Load the sums of squares of a residual, one per program that made it, [BLOCK, ROWS]."""
    part, row = tl.arange(0, BLOCK), tl.arange(0, ROWS)
    there = (part < PARTS)[:, None] & (row < tokens)[None, :]
    return tl.load(squares + part[:, None] * ROWS + row[None, :], mask=there, other=0.0)


@triton.jit
def _normed(found, square_sums, eps, INPUTS: tl.constexpr):
    """Turn products of a scaled residual into those of its root-mean-square norm."""
    return found * tl.rsqrt(tl.sum(square_sums, axis=0) / INPUTS + eps)[:, None]


@triton.jit
def _multiply(
    x, weights, real, parts, arrivals, tokens, begin, end,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """Multiply the tokens by the rows of weights at `weights`, where `real`.

    Returns the products, [ROWS, TILE] float32, and whether they are complete: if programs share the inputs, they are
    for the last one to end.
    """
    row, step = tl.arange(0, ROWS), tl.arange(0, STEP)
    there = (row < tokens)[:, None]
    found = tl.zeros([ROWS, TILE], tl.float32)
    for at in range(begin, end, STEP):
        taken = tl.load(x + row[:, None] * INPUTS + at + step[None, :], mask=there, other=0.0)
        if COLUMNS == TILE:
            weight = tl.load(weights[:, None] + at + step[None, :])
        else:
            weight = tl.load(weights[:, None] + at + step[None, :], mask=real[:, None], other=0.0)
        found = tl.dot(taken, tl.trans(weight), found)
    last = True
    if SPLITS > 1:
        block, split = tl.program_id(0), tl.program_id(1)
        part = parts + block * (SPLITS * ROWS * TILE) + row[:, None] * TILE + tl.arange(0, TILE)[None, :]
        tl.store(part + split * (ROWS * TILE), found, mask=there)
        tl.debug_barrier()  # all threads must have stored before one of them counts the arrival
        last = tl.atomic_add(arrivals + block, 1, sem="acq_rel") == SPLITS - 1
        if last:
            tl.store(arrivals + block, 0)  # ready for the next product
            found = tl.zeros([ROWS, TILE], tl.float32)
            for i in tl.static_range(SPLITS):  # bypass the first-level cache, which may be stale
                found += tl.load(part + i * (ROWS * TILE), mask=there, other=0.0, cache_modifier=".cg")
    return found, last


@triton.jit
def embed(
    ids, table, norm, residual, scaled, squares, arrivals,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, COUNTERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Store the embedding of each token as residual, that times the norm's weights, and the sum of its squares.

    One program per token. The first also sets the arrivals to zero.
    """
    launch_dependents_and_wait(DEPENDENT)
    token = tl.program_id(0)
    if token == 0:
        tl.store(arrivals + tl.arange(0, COUNTERS), tl.zeros([COUNTERS], tl.int32))
    column = tl.arange(0, BLOCK)
    there = column < WIDTH
    x = tl.load(table + tl.load(ids + token).to(tl.int64) * WIDTH + column, mask=there, other=0.0)
    wide = x.to(tl.float32)
    tl.store(residual + token * WIDTH + column, x, mask=there)
    weight = tl.load(norm + column, mask=there, other=0.0).to(tl.float32)
    tl.store(scaled + token * WIDTH + column, (wide * weight).to(x.dtype), mask=there)
    tl.store(squares + token, tl.sum(wide * wide, axis=0))


@triton.jit(do_not_specialize=["tokens"])
def project(
    x, weight, bias, parts, arrivals, squares, out, tokens, eps,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, BIAS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, STEP: tl.constexpr,
    AHEAD: tl.constexpr, NUMBERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Store the product of the normed residual in out, [tokens, OUTPUTS]."""
    row, place = tl.arange(0, ROWS), tl.arange(0, TILE)
    column = tl.program_id(0) * COLUMNS + place
    real = (place < COLUMNS) & (column < OUTPUTS)
    known = tl.minimum(column, OUTPUTS - 1).to(tl.int64)
    weights = weight + known * INPUTS
    begin, end = _begin(weights, INPUTS, SPLITS, STEP, AHEAD, NUMBERS, DEPENDENT)
    square_sums = _square_sums(squares, tokens, PARTS, BLOCK, ROWS)
    if BIAS:
        added = tl.load(bias + known).to(tl.float32)
    found, last = _multiply(
        x, weights, real, parts, arrivals, tokens, begin, end, INPUTS, ROWS, COLUMNS, TILE, SPLITS, STEP
    )
    if not last:
        return
    found = _normed(found, square_sums, eps, INPUTS)
    if BIAS:
        found += added[None, :]
    there = (row < tokens)[:, None] & real[None, :]
    at = row.to(tl.int64)[:, None] * OUTPUTS + column[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["tokens"])
def add(
    x, weight, bias, parts, arrivals, norm, residual, scaled, squares, tokens,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, STEP: tl.constexpr,
    AHEAD: tl.constexpr, NUMBERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Add the product to the residual, [tokens, OUTPUTS].

    Also store the sum times the norm's weights (`scaled`), and the sums of squares of this program's columns.
    """
    row, place = tl.arange(0, ROWS), tl.arange(0, TILE)
    column = tl.program_id(0) * COLUMNS + place
    real = (place < COLUMNS) & (column < OUTPUTS)
    known = tl.minimum(column, OUTPUTS - 1).to(tl.int64)
    weights = weight + known * INPUTS
    begin, end = _begin(weights, INPUTS, SPLITS, STEP, AHEAD, NUMBERS, DEPENDENT)
    there = (row < tokens)[:, None] & real[None, :]
    at = row[:, None] * OUTPUTS + column[None, :]
    before = tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
    scale = tl.load(norm + known).to(tl.float32)
    if BIAS:
        added = tl.load(bias + known).to(tl.float32)
    found, last = _multiply(
        x, weights, real, parts, arrivals, tokens, begin, end, INPUTS, ROWS, COLUMNS, TILE, SPLITS, STEP
    )
    if not last:
        return
    if BIAS:
        found += added[None, :]
    dtype = residual.dtype.element_ty
    after = (found.to(dtype).to(tl.float32) + before).to(dtype)
    wide = tl.where(there, after.to(tl.float32), 0.0)
    tl.store(residual + at, after, mask=there)
    tl.store(scaled + at, (wide * scale[None, :]).to(dtype), mask=there)
    tl.store(squares + tl.program_id(0) * ROWS + row, tl.sum(wide * wide, axis=1))


@triton.jit(do_not_specialize=["tokens"])
def gate(
    x, weight, bias, parts, arrivals, squares, out, tokens, eps,
    INPUTS: tl.constexpr, WIDTH: tl.constexpr, BIAS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, STEP: tl.constexpr,
    AHEAD: tl.constexpr, NUMBERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Store silu(gate) * up of the normed residual in out, [tokens, WIDTH]. weight: gate's rows, then up's."""
    row, place = tl.arange(0, ROWS), tl.arange(0, TILE)
    first = tl.program_id(0) * (COLUMNS // 2)
    pair = first + place // 2  # gate and up alternate, so that both of a pair end up in one thread
    known = tl.minimum(pair, WIDTH - 1).to(tl.int64) + (place % 2) * WIDTH
    weights = weight + known * INPUTS
    begin, end = _begin(weights, INPUTS, SPLITS, STEP, AHEAD, NUMBERS, DEPENDENT)
    square_sums = _square_sums(squares, tokens, PARTS, BLOCK, ROWS)
    if BIAS:
        added = tl.load(bias + known).to(tl.float32)
    real = (place < COLUMNS) & (pair < WIDTH)
    found, last = _multiply(
        x, weights, real, parts, arrivals, tokens, begin, end, INPUTS, ROWS, COLUMNS, TILE, SPLITS, STEP
    )
    if not last:
        return
    found = _normed(found, square_sums, eps, INPUTS)
    if BIAS:
        found += added[None, :]
    dtype = out.dtype.element_ty
    opening, up = tl.split(found.to(dtype).reshape(ROWS, TILE // 2, 2))
    opening, up = opening.to(tl.float32), up.to(tl.float32)
    opened = (opening / (1.0 + tl.exp(-opening))).to(dtype).to(tl.float32)
    half = tl.arange(0, TILE // 2)
    column = first + half
    there = (row < tokens)[:, None] & ((half < COLUMNS // 2) & (column < WIDTH))[None, :]
    tl.store(out + row[:, None] * WIDTH + column[None, :], (opened * up).to(dtype), mask=there)


@triton.jit(do_not_specialize=["tokens"])
def rotate(
    x, weight, bias, parts, arrivals, squares, rotations, rows, query, keys, values, tokens, eps,
    INPUTS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BIAS: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr, STEP: tl.constexpr, AHEAD: tl.constexpr, NUMBERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Compute queries, keys and values of the normed residual.

    Queries and keys are rotated by `rotations` [tokens, HEAD_DIM]. Keys and values are stored in `rows` [tokens] of
    the pool. query: [tokens, HEADS, HEAD_DIM]. keys, values: [places, KV_HEADS, HEAD_DIM]. The order of the weights
    is that of qkv in engines.live.kernels.elementwise.rotate_and_store.
    """
    PAIRS: tl.constexpr = TILE // 2
    HALF: tl.constexpr = HEAD_DIM // 2
    row, place = tl.arange(0, ROWS), tl.arange(0, TILE)
    head = tl.program_id(0) // (HALF // PAIRS)
    first = tl.program_id(0) % (HALF // PAIRS) * PAIRS
    known = (head * HEAD_DIM + first + place // 2 + (place % 2) * HALF).to(tl.int64)  # pairs that one angle rotates
    weights = weight + known * INPUTS
    begin, end = _begin(weights, INPUTS, SPLITS, STEP, AHEAD, NUMBERS, DEPENDENT)
    square_sums = _square_sums(squares, tokens, PARTS, BLOCK, ROWS)
    there = (row < tokens)[:, None]
    column = first + tl.arange(0, PAIRS)
    angle = rotations + row[:, None] * HEAD_DIM + column[None, :]
    cos = tl.load(angle, mask=there, other=0.0).to(tl.float32)
    sin = tl.load(angle + HALF, mask=there, other=0.0).to(tl.float32)
    slot_row = tl.load(rows + row, mask=row < tokens, other=0)
    if BIAS:
        added = tl.load(bias + known).to(tl.float32)
    found, last = _multiply(
        x, weights, place < COLUMNS, parts, arrivals, tokens, begin, end, INPUTS, ROWS, COLUMNS, TILE, SPLITS, STEP
    )
    if not last:
        return
    found = _normed(found, square_sums, eps, INPUTS)
    if BIAS:
        found += added[None, :]
    dtype = query.dtype.element_ty
    left, right = tl.split(found.to(dtype).reshape(ROWS, PAIRS, 2))
    if head < HEADS + KV_HEADS:
        a, b = left.to(tl.float32), right.to(tl.float32)
        left = ((a * cos).to(dtype).to(tl.float32) - (b * sin).to(dtype).to(tl.float32)).to(dtype)
        right = ((b * cos).to(dtype).to(tl.float32) + (a * sin).to(dtype).to(tl.float32)).to(dtype)
    if head < HEADS:
        to = query + row[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + column[None, :]
    elif head < HEADS + KV_HEADS:
        to = keys + slot_row[:, None] * (KV_HEADS * HEAD_DIM) + (head - HEADS) * HEAD_DIM + column[None, :]
    else:
        mine = head - HEADS - KV_HEADS
        to = values + slot_row[:, None] * (KV_HEADS * HEAD_DIM) + mine * HEAD_DIM + column[None, :]
    tl.store(to, left, mask=there)
    tl.store(to + HALF, right, mask=there)
