"""Check the skinny GEMMs on a GPU at real shapes, and compare launches with their floor.

Each product is one of a decoder layer, with everything that is fused with it. It is compared with the library's
matrix product and the kernels around that (relative error of the norm; bfloat16 rounds at 4e-3). It is timed as a
chain in a CUDA graph, over the weights of more layers than fit into the second-level cache. The floor is the bytes of
the weights, divided by the bandwidth of a device-to-device copy.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import torch
from torch import Tensor

from engines.live.kernels import skinny_gemm
from engines.live.kernels.dependent_launch import processors_of
from engines.live.kernels.passes import Pass, Product, WidePass
from engines.live.kernels.skinny_gemm import Launch, SkinnyPass
from engines.live.serving.utilisation import measure_ceilings
from engines.pairs.shapes import ModelShape
from experiments.checks.kernels import DEVICE, LIMIT, compile_all, graph_us, random, relative_error

COLD_BYTES = 4 * 10**8
PRODUCTS = ("queries", "output", "gate", "down", "head")


class Bench:
    """One product of a layer, with the weights of several layers."""

    def __init__(self, shape: ModelShape, product: str, tokens: int, layers: int | None = None) -> None:
        torch.manual_seed(tokens)
        self.shape, self.product, self.tokens = shape, product, tokens
        hidden, heads = shape.hidden, shape.heads * shape.head_dim
        self.outputs, self.inputs = {
            "queries": (heads + 2 * shape.kv_heads * shape.head_dim, hidden),
            "output": (hidden, heads),
            "gate": (2 * shape.intermediate, hidden),
            "down": (hidden, shape.intermediate),
            "head": (shape.vocabulary, hidden),
        }[product]
        self.bytes = 2 * self.outputs * self.inputs
        layers = layers or max(3, min(24, -(-COLD_BYTES // self.bytes)))
        self.weights = [random(self.outputs, self.inputs) * self.inputs**-0.5 for _ in range(layers)]
        self.x, self.ids = random(tokens, self.inputs), torch.arange(tokens, device=DEVICE)
        self.table, self.norm, self.next_norm = random(tokens, hidden), random(hidden), random(hidden)
        angles = torch.rand(tokens, shape.head_dim // 2, device=DEVICE) * 400
        self.rotations = torch.cat([angles.cos(), angles.sin()], -1).to(self.x)
        normed = shape.heads + shape.kv_heads
        self.head_norms = random(normed, shape.head_dim) if shape.head_norms else None
        self.rows = torch.randperm(1024, device=DEVICE)[:tokens]
        self.pools = [torch.zeros(2, 512, shape.kv_heads, shape.head_dim).to(self.x) for _ in range(2)]

    def start(self, kind: Callable[..., Pass]) -> Pass:
        """Start a pass. Its residual is made by as many programs as in a layer."""
        begun = kind(self.ids, self.table, self.norm, 1e-5)
        begun.add(random(self.tokens, 512), Product(random(self.shape.hidden, 512) / 22, None), self.norm)
        return begun

    def do(self, begun: Pass, weight: Tensor) -> list[Tensor]:
        product = Product(weight, None)
        if self.product == "queries":
            return [begun.queries(product, self.head_norms, self.rotations, self.rows, *self.pools), *self.pools]
        if self.product == "gate":
            return [begun.gate(product)]
        if self.product != "head":
            begun.add(self.x, product, self.next_norm)
            return []
        return [begun.project(product)]

    def error(self) -> float:
        """Return the worst relative error against the library, of this product and of one that reads its result."""
        found = []
        for kind in (SkinnyPass, WidePass):
            torch.manual_seed(0)
            begun = self.start(kind)
            made = [each.clone() for each in self.do(begun, self.weights[0])]
            found.append([*made, begun.project(Product(random(64, self.shape.hidden) / 64, None))])
        errors = [relative_error(*pair) for pair in zip(*found, strict=True)]
        return max(error if error == error else float("inf") for error in errors)

    def time_us(self, kind: Callable[..., Pass], launch: Launch | None = None) -> float:
        begun, calls = self.start(kind), max(24, len(self.weights))
        weights = list(itertools.islice(itertools.cycle(self.weights), calls))
        with launched(launch):
            return graph_us(lambda: [self.do(begun, weight) for weight in weights]) / calls


def launched(launch: Launch | None) -> AbstractContextManager[object]:
    """Make every product use this launch; None changes nothing."""
    return nullcontext() if launch is None else mock.patch.object(skinny_gemm, "launch_for", return_value=launch)


def launches(bench: Bench) -> list[Launch]:
    """Return the launch in use, then others whose programs all run at once.

    There are one to four programs per processor, with equal shares of the columns and of the shared memory.
    """
    rows = skinny_gemm.FEW if bench.tokens <= skinny_gemm.FEW else skinny_gemm.MOST_TOKENS
    heads = bench.product == "queries" and not bench.shape.head_norms
    processors = processors_of(DEVICE)
    found = [skinny_gemm.launch_for(bench.outputs, bench.inputs, rows, processors, heads)]
    split = (1, 2, 4) if bench.outputs <= 64 * processors and not heads else (1,)
    for each, splits, warps in itertools.product((1, 2, 3, 4), split, (2, 4)):
        columns = 2 * -(-bench.outputs * splits // (2 * processors * each))
        columns = 1 << (columns - 1).bit_length() if heads else columns
        if not skinny_gemm.LEAST_COLUMNS <= columns <= skinny_gemm.MOST_COLUMNS or rows * columns > 128 * 32 * warps:
            continue
        for step in (64, 128, 256):
            tile = 1 << (columns - 1).bit_length()
            stages = min(8, skinny_gemm.SHARED_BYTES // each // (2 * (tile + rows) * step))
            if stages >= 3 and bench.inputs // splits >= 2 * step and bench.inputs % step == 0:
                found.append(Launch(columns, splits, step, warps, stages, 256))
    return list(dict.fromkeys(found))


def compile_ahead(shape: ModelShape, product: str, tokens: int, launch: Launch) -> None:
    """Fill Triton's cache on disk, in a process of its own."""
    with torch.inference_mode():
        bench = Bench(shape, product, tokens, layers=1)
        begun = bench.start(SkinnyPass)
        with launched(launch):
            bench.do(begun, bench.weights[0])
        torch.cuda.synchronize()


def label(launch: Launch) -> str:
    sizes = (launch.columns, launch.splits, launch.step, launch.warps, launch.stages, launch.ahead)
    return "/".join(str(size) for size in sizes)


@torch.inference_mode()
def check_products(shapes: Sequence[ModelShape], counts: Sequence[int], budget_s: float, jobs: int) -> bool:
    """Check and time the products, and print the results. Returns whether all are correct.

    counts: numbers of tokens. budget_s: limits the timing.
    """
    begin = time.perf_counter()
    cases = list(itertools.product(shapes, PRODUCTS, counts))
    wanted = [(*case, launch) for case in cases for launch in launches(Bench(*case, layers=1))]
    compile_all(compile_ahead, wanted, jobs)

    bandwidth = measure_ceilings(DEVICE, torch.bfloat16).copy_bytes_per_s / 1e6
    right = True
    print(f"copy {bandwidth / 1e6:.2f} TB/s. In us; best four launches as columns/splits/step/warps/stages/ahead")
    print(f"{'shape':15} {'product':8} {'tokens':>6} {'error':>7} {'floor':>6} {'library':>7} {'used':>6}  launches")
    for shape, product, tokens in cases:
        bench = Bench(shape, product, tokens)
        error = bench.error()
        right &= error < LIMIT
        text = f"{shape.name:15} {product:8} {tokens:6} {error:7.0e} {bench.bytes / bandwidth:6.1f}"
        if time.perf_counter() - begin > budget_s:
            print(text, "  not timed: time is up")
            continue
        found = {launch: bench.time_us(SkinnyPass, launch) for launch in launches(bench)}
        used = next(iter(found))
        best = sorted(found, key=found.__getitem__)[:4]
        print(
            text, f"{bench.time_us(WidePass):7.1f} {found[used]:6.1f} ", label(used),
            *(f"{label(launch)}: {found[launch]:.1f}" for launch in best), sep="  ",
        )  # fmt: skip
    print(f"{time.perf_counter() - begin:.0f} s; {'all correct' if right else 'SOMETHING IS WRONG'}")
    return right
