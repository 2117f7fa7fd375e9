"""Skinny GEMMs, products of few tokens with large weights, fused with the other work of a decoder layer.

Draft, and verify of small batches, read every weight once for a handful of tokens. They take as long as reading the
weights, plus the gaps between kernels in which memory is idle. A layer is therefore only five launches:

1. queries, keys and values, with norm, rotation and store (if heads have norms, rotation and store are a sixth
launch) 2. attention 3. attention output, added to the residual 4. gate and up, with norm and SiLU 5. down, added to
the residual

Each launch overlaps its predecessor (programmatic dependent launch, CUDA programming guide). It starts once all
programs of its predecessor have started, prefetches its first weights, which no kernel writes, and only then waits
for its input.

Norms are split in two, so that no kernel has to read a whole row before it starts. The kernel that makes a residual
also stores it times the norm's weights (`scaled`), and each program's sums of its squares (`squares`). The kernel
that multiplies it divides by the root of their mean at the end. Rounding differs from transformers here: the residual
times the weights is rounded before the division.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
from torch import Tensor

from engines.live.kernels import skinny_gemm_triton
from engines.live.kernels.dependent_launch import LINE, processors_of, supports_dependent_launch
from engines.live.kernels.elementwise import rotate_and_store
from engines.live.kernels.passes import Product

FEW, MOST_TOKENS = 16, 64  # rows of a product: the minimum of the matrix units, and those of one Hopper instruction
LEAST_COLUMNS, MOST_COLUMNS = 16, 256  # per program's tile
LEAST_STEP = 16
MANY_INPUTS = 4096  # a medium-sized product with at least these is split over two programs per processor
SHARED_BYTES = 224 * 1024  # of a Hopper processor, for all programs that run on it at once
COUNTERS = 4096  # more than the blocks of columns of any split product
NUMBERS = LINE // 2  # bfloat16 numbers per line of the cache


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched.

    columns: outputs per program, an even number. splits: programs that share the inputs of the same outputs. step:
    inputs that a program loads at a time. ahead: inputs per column whose weights it prefetches before it waits (a
    multiple of NUMBERS; 0 for none).
    """

    columns: int
    splits: int
    step: int
    warps: int
    stages: int
    ahead: int = 0

    @property
    def tile(self) -> int:
        """Columns of the tile that a program computes. The last ones may be unused."""
        return triton.next_power_of_2(self.columns)


@cache
def launch_for(outputs: int, inputs: int, rows: int, processors: int, power_of_two: bool = False) -> Launch:
    """Return how to launch a product of this many rows.

    The rule was tuned on an H200, and on an H100 before. On a new kind of GPU, `pdv check products`
    compares it with other launches.

    All programs run at once and have equal work, so that they end together. There is one program per processor, or a
    few, which share its memory, if this fills their tiles better. Inputs are split if there are few outputs and, with
    few rows and many inputs, also if there are somewhat more.
    power_of_two: make `columns` a power of two.
    """
    share, few = triton.cdiv(outputs, processors), rows == FEW
    splits, together, warps, longest = 1, 1, 4, 128
    if power_of_two:
        columns = max(LEAST_COLUMNS, triton.next_power_of_2(share)) if share <= 64 else 32
        together = min(4, triton.cdiv(share, columns))
        warps, longest = (2, 128) if few and together > 1 else (4, 256 if few else 128)
    elif share <= 32:
        columns = 64 if few else 32
        splits = max(1, min(8, columns * processors // outputs))
    else:
        columns = triton.cdiv(share, triton.cdiv(share, MOST_COLUMNS))
        together = max((1, 2, 3), key=lambda programs: _filled(columns, programs)) if columns > 128 else 1
        columns = _divided(columns, together)
        if few and share <= 64 and inputs >= MANY_INPUTS:
            splits, together = 2, 2
    tile = triton.next_power_of_2(columns)
    least = 4 if together > 1 else 3
    step, stages = _steps(2 * (tile + rows), SHARED_BYTES // together, math.gcd(longest, inputs), least)
    steps = inputs // step
    splits = min(splits, max(1, steps // 2))
    splits = triton.cdiv(steps, triton.cdiv(steps, splits))  # no program without work
    early = min(256, triton.next_power_of_2(inputs // splits // 2 + 1) // 2)
    return Launch(columns, splits, step, warps, stages, early // NUMBERS * NUMBERS)


def _divided(columns: int, programs: int) -> int:
    """Return the columns per program if this many share them, an even number."""
    return 2 * triton.cdiv(columns, 2 * programs)


def _filled(columns: int, programs: int) -> float:
    """Return the share of their tiles that such programs fill."""
    each = _divided(columns, programs)
    return each / triton.next_power_of_2(each)


def _steps(bytes_per_input: int, memory: int, longest: int, least: int) -> tuple[int, int]:
    """Return the longest step of which at least `least` stages fit into the memory, and how many stages fit."""
    step = longest
    while step > LEAST_STEP and memory // (bytes_per_input * step) < least:
        step //= 2
    return step, min(8, max(2, memory // (bytes_per_input * step)))


class SkinnyPass:
    """One pass of few tokens through a model. For the methods see engines.live.kernels.passes.Pass.

    residual: [tokens, width]. _scaled: the residual times the next norm's weights. _squares: [parts, rows] float32.
    """

    def __init__(self, ids: Tensor, table: Tensor, norm: Tensor, eps: float) -> None:
        self._eps, self._dependent, self._parts = eps, supports_dependent_launch(table.device), 1
        self._processors = processors_of(table.device)
        self._resize(len(ids), table)
        self._arrivals = ids.new_empty(COUNTERS, dtype=torch.int32)
        width = table.shape[1]
        skinny_gemm_triton.embed[(self._tokens,)](
            ids, table, norm, self.residual, self._scaled, self._squares, self._arrivals,
            width, triton.next_power_of_2(width), COUNTERS, self._dependent, num_warps=8, launch_pdl=self._dependent,
        )  # fmt: skip

    def queries(
        self, product: Product, head_norms: Tensor | None, rotations: Tensor, rows: Tensor,
        keys: Tensor, values: Tensor,
    ) -> Tensor:  # fmt: skip
        if head_norms is not None:  # a program may not have the whole head that the norm needs
            return rotate_and_store(self.project(product), rotations, head_norms, self._eps, rows, keys, values)
        (outputs, inputs), (kv_heads, head_dim) = product.weight.shape, keys.shape[-2:]
        launch = self._launch(outputs, inputs, power_of_two=True)
        launch = replace(launch, columns=min(launch.columns, head_dim))  # a program rotates pairs of one head
        heads = outputs // head_dim - 2 * kv_heads
        query = self.residual.new_empty(self._tokens, heads, head_dim)
        skinny_gemm_triton.rotate[(outputs // launch.columns, launch.splits)](
            self._scaled, *self._weights(product), *self._shared(outputs, launch),
            self._squares, rotations, rows, query, keys, values,
            self._tokens, self._eps, inputs, heads, kv_heads, head_dim, product.bias is not None,
            *self._norm_shape(), *self._shape(launch), **self._options(launch),
        )  # fmt: skip
        return query

    def add(self, x: Tensor, product: Product, norm: Tensor) -> None:
        outputs, inputs = product.weight.shape
        launch = self._launch(outputs, inputs)
        self._parts = triton.cdiv(outputs, launch.columns)
        skinny_gemm_triton.add[(self._parts, launch.splits)](
            x, *self._weights(product), *self._shared(outputs, launch),
            norm, self.residual, self._scaled, self._squares, self._tokens,
            inputs, outputs, product.bias is not None, *self._shape(launch), **self._options(launch),
        )  # fmt: skip

    def gate(self, product: Product) -> Tensor:
        width, inputs = product.weight.shape[0] // 2, product.weight.shape[1]
        launch = self._launch(2 * width, inputs)
        out = self.residual.new_empty(self._tokens, width)
        skinny_gemm_triton.gate[(triton.cdiv(width, launch.columns // 2), launch.splits)](
            self._scaled, *self._weights(product), *self._shared(2 * width, launch),
            self._squares, out, self._tokens, self._eps,
            inputs, width, product.bias is not None,
            *self._norm_shape(), *self._shape(launch), **self._options(launch),
        )  # fmt: skip
        return out

    def project(self, product: Product) -> Tensor:
        outputs, inputs = product.weight.shape
        launch = self._launch(outputs, inputs)
        out = self.residual.new_empty(self._tokens, outputs)
        skinny_gemm_triton.project[(triton.cdiv(outputs, launch.columns), launch.splits)](
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

    def _launch(self, outputs: int, inputs: int, power_of_two: bool = False) -> Launch:
        return launch_for(outputs, inputs, self._rows, self._processors, power_of_two)

    def _weights(self, product: Product) -> tuple[Tensor, Tensor]:
        return product.weight, product.weight if product.bias is None else product.bias

    def _shared(self, outputs: int, launch: Launch) -> tuple[Tensor, Tensor]:
        """Return the buffers for partial sums of programs that share inputs, and for their arrivals."""
        blocks = triton.cdiv(outputs, launch.columns) if launch.splits > 1 else 0
        size = blocks * launch.splits * self._rows * launch.tile
        return self._scaled.new_empty(size, dtype=torch.float32), self._arrivals

    def _norm_shape(self) -> tuple[int, int]:
        return self._parts, triton.next_power_of_2(self._parts)

    def _shape(self, launch: Launch) -> tuple[int, int, int, int, int, int, int, bool]:
        sizes = self._rows, launch.columns, launch.tile, launch.splits, launch.step
        return *sizes, launch.ahead, NUMBERS, self._dependent

    def _options(self, launch: Launch) -> dict[str, int | bool]:
        return {"num_warps": launch.warps, "num_stages": launch.stages, "launch_pdl": self._dependent}
