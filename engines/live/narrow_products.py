"""Products of few tokens with large weights, as Triton kernels that do a decoder layer's other work on the way.

Drafting, and verifying small batches, read every weight once for a handful of tokens: the time is that of the bytes,
and of whatever keeps the memory waiting between one kernel and the next. So a layer is five launches: queries, keys
and values with norm, rotation and store (six where heads have norms: rotation and store are then one of their own);
attention; its output, added to the residual; gate and up with norm and SiLU; down, added to the residual. And each
launch overlaps its predecessor (programmatic dependent launch, CUDA programming guide): it starts when the one before
has started everywhere, asks for its first weights, which nobody writes, and only then waits for its input.

A norm is taken apart, so that no kernel needs a whole row before it starts: whoever makes a residual also leaves it
times the norm's weights (`scaled`) and each program's sum of its squares (`squares`); whoever multiplies it divides
by the root of their mean at the end. Rounding differs from transformers' there: what is rounded is the residual times
the weights, before the division.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.live.launching import LINE, ahead, depends, follow
from engines.live.operations import rotate_and_store
from engines.live.passes import Product

FEW, MOST_TOKENS = 16, 64  # rows of a product: the least that the matrix units take, and one instruction of Hopper's
LEAST_COLUMNS = 16
COUNTERS = 4096  # of split products: more blocks of columns are not split
NUMBERS = LINE // 2  # in a line


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched. columns: outputs of one program; splits: programs that share the inputs of the same
    outputs; step: inputs that a program takes at a time; ahead: inputs of each column whose weights it asks for
    before it waits (a multiple of NUMBERS, 0: none)."""

    columns: int
    splits: int
    step: int
    warps: int
    stages: int
    ahead: int = 0


@cache
def launch_for(outputs: int, inputs: int, rows: int) -> Launch:
    """How a product of so many rows is launched: a rule drawn from tuning on an H100, for
    experiments/product_check.py to compare with others on a new kind of GPU.

    Many outputs give every processor several programs, and the device evens them out. Of few outputs the inputs are
    split, and the fewer rows there are to read again, the more.
    """
    few = rows == FEW
    if outputs >= 264 * 32:
        columns, splits, warps, stages = (32, 1, 2, 6) if few else (32, 1, 4, 3)
        step = 128
    else:
        columns, step, warps, stages = (16, 256, 2, 4) if few else (64 if inputs > 2 * outputs else 32, 128, 4, 5)
        splits = triton.next_power_of_2(triton.cdiv(512 if few else 128, triton.cdiv(outputs, columns)))
    step = math.gcd(step, inputs)
    splits = min(splits, max(1, inputs // (2 * step)))
    early = min(512, triton.next_power_of_2(inputs // splits // 2 + 1) // 2)
    return Launch(columns, splits, step, warps, stages, early // NUMBERS * NUMBERS)


@triton.jit
def _multiply(
    x, weights, squares, parts, arrivals, tokens, eps,
    INPUTS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr, STEP: tl.constexpr, AHEAD: tl.constexpr, NUMBERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The tokens times the rows of weights that `weights` point to, [ROWS, COLUMNS] float32, and with PARTS divided
    by the root mean square of the residuals whose squares were summed in so many parts. Then whether this program
    has it all: of those that share the inputs, the last to end."""
    block, split = tl.program_id(0), tl.program_id(1)
    row = tl.arange(0, ROWS)
    step = tl.arange(0, STEP)
    there = (row < tokens)[:, None]
    each = (INPUTS // STEP + SPLITS - 1) // SPLITS * STEP
    first = split * each
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        if AHEAD > 0:
            early = min(first, INPUTS - AHEAD) + tl.arange(0, AHEAD // NUMBERS) * NUMBERS
            ahead(weights[:, None] + early[None, :])
        tl.extra.cuda.gdc_wait()
    found = tl.zeros([ROWS, COLUMNS], tl.float32)
    for at in range(first, min(first + each, INPUTS), STEP):
        taken = tl.load(x + row[:, None] * INPUTS + at + step[None, :], mask=there, other=0.0)
        weight = tl.load(weights[:, None] + at + step[None, :])
        found = tl.dot(taken, tl.trans(weight), found)
    last = True
    if SPLITS > 1:
        tile = parts + block * (SPLITS * ROWS * COLUMNS) + row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        tl.store(tile + split * (ROWS * COLUMNS), found, mask=there)
        tl.debug_barrier()  # all threads have stored before one of them says so
        last = tl.atomic_add(arrivals + block, 1, sem="acq_rel") == SPLITS - 1
        if last:
            tl.store(arrivals + block, 0)  # ready for the next product
            found = tl.zeros([ROWS, COLUMNS], tl.float32)
            for i in tl.static_range(SPLITS):  # past the first-level cache, which need not show what others store
                found += tl.load(tile + i * (ROWS * COLUMNS), mask=there, other=0.0, cache_modifier=".cg")
    if PARTS > 0:
        part = tl.arange(0, BLOCK)
        summed = (part < PARTS)[:, None] & (row < tokens)[None, :]
        sums = tl.load(squares + part[:, None] * ROWS + row[None, :], mask=summed, other=0.0)
        found *= tl.rsqrt(tl.sum(sums, axis=0) / INPUTS + eps)[:, None]
    return found, last


@triton.jit
def _embed(
    ids, table, norm, residual, scaled, squares, arrivals,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, COUNTERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    follow(DEPENDENT)
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
def _project(
    x, weight, bias, parts, arrivals, squares, out, tokens, eps,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, BIAS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, STEP: tl.constexpr, AHEAD: tl.constexpr,
    NUMBERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = tl.minimum(column, OUTPUTS - 1).to(tl.int64)
    weights = weight + known * INPUTS
    found, last = _multiply(
        x, weights, squares, parts, arrivals, tokens, eps,
        INPUTS, PARTS, BLOCK, ROWS, COLUMNS, SPLITS, STEP, AHEAD, NUMBERS, DEPENDENT,
    )  # fmt: skip
    if not last:
        return
    if BIAS:
        found += tl.load(bias + known)[None, :].to(tl.float32)
    row = tl.arange(0, ROWS)
    there = (row < tokens)[:, None] & (column < OUTPUTS)[None, :]
    place = row.to(tl.int64)[:, None] * OUTPUTS + column[None, :]
    tl.store(out + place, found.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["tokens"])
def _add(
    x, weight, bias, parts, arrivals, norm, residual, scaled, squares, tokens,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, STEP: tl.constexpr, AHEAD: tl.constexpr,
    NUMBERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = tl.minimum(column, OUTPUTS - 1).to(tl.int64)
    weights = weight + known * INPUTS
    found, last = _multiply(
        x, weights, squares, parts, arrivals, tokens, 0.0,
        INPUTS, 0, 1, ROWS, COLUMNS, SPLITS, STEP, AHEAD, NUMBERS, DEPENDENT,
    )  # fmt: skip
    if not last:
        return
    if BIAS:
        found += tl.load(bias + known)[None, :].to(tl.float32)
    row = tl.arange(0, ROWS)
    there = (row < tokens)[:, None] & (column < OUTPUTS)[None, :]
    place = row[:, None] * OUTPUTS + column[None, :]
    dtype = residual.dtype.element_ty
    found = found.to(dtype).to(tl.float32) + tl.load(residual + place, mask=there, other=0.0).to(tl.float32)
    found = found.to(dtype)
    wide = tl.where(there, found.to(tl.float32), 0.0)
    tl.store(residual + place, found, mask=there)
    tl.store(scaled + place, (wide * tl.load(norm + known)[None, :].to(tl.float32)).to(dtype), mask=there)
    tl.store(squares + tl.program_id(0) * ROWS + row, tl.sum(wide * wide, axis=1))


@triton.jit(do_not_specialize=["tokens"])
def _gate(
    x, weight, bias, parts, arrivals, squares, out, tokens, eps,
    INPUTS: tl.constexpr, WIDTH: tl.constexpr, BIAS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, STEP: tl.constexpr, AHEAD: tl.constexpr,
    NUMBERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = COLUMNS // 2
    place = tl.arange(0, COLUMNS)  # gate and up take turns, so that the two of a pair end in one thread
    known = tl.minimum(tl.program_id(0) * HALF + place // 2, WIDTH - 1).to(tl.int64) + (place % 2) * WIDTH
    weights = weight + known * INPUTS
    found, last = _multiply(
        x, weights, squares, parts, arrivals, tokens, eps,
        INPUTS, PARTS, BLOCK, ROWS, COLUMNS, SPLITS, STEP, AHEAD, NUMBERS, DEPENDENT,
    )  # fmt: skip
    if not last:
        return
    if BIAS:
        found += tl.load(bias + known)[None, :].to(tl.float32)
    gate, up = tl.split(found.to(out.dtype.element_ty).reshape(ROWS, HALF, 2))
    gate, up = gate.to(tl.float32), up.to(tl.float32)
    opened = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * HALF + tl.arange(0, HALF)
    there = (row < tokens)[:, None] & (column < WIDTH)[None, :]
    tl.store(out + row[:, None] * WIDTH + column[None, :], (opened * up).to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["tokens"])
def _rotate(
    x, weight, bias, parts, arrivals, squares, rotations, rows, query, keys, values, tokens, eps,
    INPUTS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BIAS: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr,
    STEP: tl.constexpr, AHEAD: tl.constexpr, NUMBERS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    PAIRS: tl.constexpr = COLUMNS // 2
    HALF: tl.constexpr = HEAD_DIM // 2
    head = tl.program_id(0) // (HALF // PAIRS)
    first = tl.program_id(0) % (HALF // PAIRS) * PAIRS
    place = tl.arange(0, COLUMNS)  # the two numbers that one angle turns take turns
    known = (head * HEAD_DIM + first + place // 2 + (place % 2) * HALF).to(tl.int64)
    weights = weight + known * INPUTS
    found, last = _multiply(
        x, weights, squares, parts, arrivals, tokens, eps,
        INPUTS, PARTS, BLOCK, ROWS, COLUMNS, SPLITS, STEP, AHEAD, NUMBERS, DEPENDENT,
    )  # fmt: skip
    if not last:
        return
    if BIAS:
        found += tl.load(bias + known)[None, :].to(tl.float32)
    dtype = query.dtype.element_ty
    left, right = tl.split(found.to(dtype).reshape(ROWS, PAIRS, 2))
    row = tl.arange(0, ROWS)
    real = row < tokens
    there = real[:, None]
    column = first + tl.arange(0, PAIRS)
    if head < HEADS + KV_HEADS:
        angle = rotations + row[:, None] * HEAD_DIM + column[None, :]
        cos = tl.load(angle, mask=there, other=0.0).to(tl.float32)
        sin = tl.load(angle + HALF, mask=there, other=0.0).to(tl.float32)
        a, b = left.to(tl.float32), right.to(tl.float32)
        left = ((a * cos).to(dtype).to(tl.float32) - (b * sin).to(dtype).to(tl.float32)).to(dtype)
        right = ((b * cos).to(dtype).to(tl.float32) + (a * sin).to(dtype).to(tl.float32)).to(dtype)
    if head < HEADS:
        to = query + row[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + column[None, :]
        tl.store(to, left, mask=there)
        tl.store(to + HALF, right, mask=there)
    else:
        slot_row = tl.load(rows + row, mask=real, other=0)[:, None] * (KV_HEADS * HEAD_DIM)
        pool = keys
        mine = head - HEADS
        if head >= HEADS + KV_HEADS:
            pool = values
            mine = head - HEADS - KV_HEADS
        to = pool + slot_row + mine * HEAD_DIM + column[None, :]
        tl.store(to, left, mask=there)
        tl.store(to + HALF, right, mask=there)


class NarrowPass:
    """One pass of few tokens through a model; engines.live.passes.Pass says what the methods do.

    residual: [tokens, width]; _scaled: the same times the next norm's weights; _squares: [parts, rows] float32.
    """

    def __init__(self, ids: Tensor, table: Tensor, norm: Tensor, eps: float) -> None:
        self._eps, self._dependent, self._parts = eps, depends(table.device), 1
        self._resize(len(ids), table)
        self._arrivals = ids.new_empty(COUNTERS, dtype=torch.int32)
        width = table.shape[1]
        _embed[(self._tokens,)](
            ids, table, norm, self.residual, self._scaled, self._squares, self._arrivals,
            width, triton.next_power_of_2(width), COUNTERS, self._dependent, num_warps=8, launch_pdl=self._dependent,
        )  # fmt: skip

    def queries(
        self, product: Product, head_norms: Tensor | None, rotations: Tensor, rows: Tensor,
        keys: Tensor, values: Tensor,
    ) -> Tensor:  # fmt: skip
        if head_norms is not None:  # a norm of a whole head is not a program's own matter
            return rotate_and_store(self.project(product), rotations, head_norms, self._eps, rows, keys, values)
        (outputs, inputs), (kv_heads, head_dim) = product.weight.shape, keys.shape[-2:]
        launch = launch_for(outputs, inputs, self._rows)
        launch = replace(launch, columns=min(launch.columns, head_dim))  # a program turns pairs of one head
        heads = outputs // head_dim - 2 * kv_heads
        query = self.residual.new_empty(self._tokens, heads, head_dim)
        _rotate[(outputs // launch.columns, launch.splits)](
            self._scaled, *self._weights(product), *self._shared(outputs, launch),
            self._squares, rotations, rows, query, keys, values,
            self._tokens, self._eps, inputs, heads, kv_heads, head_dim, product.bias is not None,
            *self._norm_shape(), *self._shape(launch), **self._options(launch),
        )  # fmt: skip
        return query

    def add(self, x: Tensor, product: Product, norm: Tensor) -> None:
        outputs, inputs = product.weight.shape
        launch = launch_for(outputs, inputs, self._rows)
        self._parts = triton.cdiv(outputs, launch.columns)
        _add[(self._parts, launch.splits)](
            x, *self._weights(product), *self._shared(outputs, launch),
            norm, self.residual, self._scaled, self._squares, self._tokens,
            inputs, outputs, product.bias is not None, *self._shape(launch), **self._options(launch),
        )  # fmt: skip

    def gate(self, product: Product) -> Tensor:
        width, inputs = product.weight.shape[0] // 2, product.weight.shape[1]
        launch = launch_for(2 * width, inputs, self._rows)
        out = self.residual.new_empty(self._tokens, width)
        _gate[(triton.cdiv(width, launch.columns // 2), launch.splits)](
            self._scaled, *self._weights(product), *self._shared(2 * width, launch),
            self._squares, out, self._tokens, self._eps,
            inputs, width, product.bias is not None,
            *self._norm_shape(), *self._shape(launch), **self._options(launch),
        )  # fmt: skip
        return out

    def project(self, product: Product) -> Tensor:
        outputs, inputs = product.weight.shape
        launch = launch_for(outputs, inputs, self._rows)
        out = self.residual.new_empty(self._tokens, outputs)
        _project[(triton.cdiv(outputs, launch.columns), launch.splits)](
            self._scaled, *self._weights(product), *self._shared(outputs, launch),
            self._squares, out, self._tokens, self._eps,
            inputs, outputs, product.bias is not None,
            *self._norm_shape(), *self._shape(launch), **self._options(launch),
        )  # fmt: skip
        return out

    def keep(self, places: Tensor) -> None:
        residual = self.residual
        self._resize(len(places), residual)
        torch.index_select(residual, 0, places, out=self.residual)

    def _resize(self, tokens: int, like: Tensor) -> None:
        width = like.shape[1]
        self._tokens, self._rows = tokens, FEW if tokens <= FEW else MOST_TOKENS
        self.residual, self._scaled = like.new_empty(tokens, width), like.new_empty(tokens, width)
        self._squares = like.new_empty(triton.cdiv(width, LEAST_COLUMNS), self._rows, dtype=torch.float32)

    def _weights(self, product: Product) -> tuple[Tensor, Tensor]:
        return product.weight, product.weight if product.bias is None else product.bias

    def _shared(self, outputs: int, launch: Launch) -> tuple[Tensor, Tensor]:
        """Where programs that share inputs leave their parts, and count those that have."""
        blocks = triton.cdiv(outputs, launch.columns) if launch.splits > 1 else 0
        size = blocks * launch.splits * self._rows * launch.columns
        return self._scaled.new_empty(size, dtype=torch.float32), self._arrivals

    def _norm_shape(self) -> tuple[int, int]:
        return self._parts, triton.next_power_of_2(self._parts)

    def _shape(self, launch: Launch) -> tuple[int, int, int, int, int, int, bool]:
        return self._rows, launch.columns, launch.splits, launch.step, launch.ahead, NUMBERS, self._dependent

    def _options(self, launch: Launch) -> dict[str, int | bool]:
        return {"num_warps": launch.warps, "num_stages": launch.stages, "launch_pdl": self._dependent}
