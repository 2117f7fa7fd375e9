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
from torch import Tensor

from engines.live.kernels import skinny_gemm_triton
from engines.live.kernels.dependent_launch import LINE, processors_of, supports_dependent_launch
from engines.live.kernels.elementwise import rotate_and_store
from engines.live.kernels.passes import Product

FEW, MOST_TOKENS = 16, 64  # rows of a product: the least that the matrix units take, and one instruction of Hopper's
LEAST_COLUMNS, MOST_COLUMNS = 16, 256  # of a program's tile
LEAST_STEP = 16
MANY_INPUTS = 4096  # of a product of medium size: two programs a processor share them
SHARED_BYTES = 224 * 1024  # of a Hopper processor, for programs that run at the same time
COUNTERS = 4096  # more than any split product has blocks of columns
NUMBERS = LINE // 2  # in a line


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched. columns: outputs of one program, an even number; splits: programs that share the
    inputs of the same outputs; step: inputs that a program takes at a time; ahead: inputs of each column whose
    weights it asks for before it waits (a multiple of NUMBERS, 0: none)."""

    columns: int
    splits: int
    step: int
    warps: int
    stages: int
    ahead: int = 0

    @property
    def tile(self) -> int:
        """Columns of the tile that a program computes, of which the last ones may be nobody's."""
        return triton.next_power_of_2(self.columns)


@cache
def launch_for(outputs: int, inputs: int, rows: int, processors: int, power_of_two: bool = False) -> Launch:
    """How a product of so many rows is launched: a rule drawn from tuning on an H200, and before on an H100, for
    `pdv check products` to compare with others on a new kind of GPU.

    Programs run at the same time and have as much to do, so that they end together, and share a processor's memory:
    one program a processor, or a few where their tiles are filled better so. Of few outputs the inputs are split, and
    with few rows, where they are many, of not so few.
    power_of_two: columns have to be one.
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
    splits = triton.cdiv(steps, triton.cdiv(steps, splits))  # none that would have nothing to do
    early = min(256, triton.next_power_of_2(inputs // splits // 2 + 1) // 2)
    return Launch(columns, splits, step, warps, stages, early // NUMBERS * NUMBERS)


def _divided(columns: int, programs: int) -> int:
    """Columns of each of so many programs, an even number."""
    return 2 * triton.cdiv(columns, 2 * programs)


def _filled(columns: int, programs: int) -> float:
    """How much of their tiles such programs fill."""
    each = _divided(columns, programs)
    return each / triton.next_power_of_2(each)


def _steps(bytes_per_input: int, memory: int, longest: int, least: int) -> tuple[int, int]:
    """The longest step of which at least so many stages fit into the memory, and how many do."""
    step = longest
    while step > LEAST_STEP and memory // (bytes_per_input * step) < least:
        step //= 2
    return step, min(8, max(2, memory // (bytes_per_input * step)))


class SkinnyPass:
    """One pass of few tokens through a model; engines.live.kernels.passes.Pass says what the methods do.

    residual: [tokens, width]; _scaled: the same times the next norm's weights; _squares: [parts, rows] float32.
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
        if head_norms is not None:  # a norm of a whole head is not a program's own matter
            return rotate_and_store(self.project(product), rotations, head_norms, self._eps, rows, keys, values)
        (outputs, inputs), (kv_heads, head_dim) = product.weight.shape, keys.shape[-2:]
        launch = self._launch(outputs, inputs, power_of_two=True)
        launch = replace(launch, columns=min(launch.columns, head_dim))  # a program turns pairs of one head
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
        """Where programs that share inputs leave their parts, and count those that have."""
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
