"""Check the Triton kernels on a GPU at real shapes, and compare attention launches with their floor.

Every kernel runs on random data. Its output memory is filled with NaN before, and so are all other slots of the pool.
The result is compared with the PyTorch function of the same name in float32 (relative error of the norm; bfloat16
rounds at 4e-3). Attention is timed in a CUDA graph, over the pools of more layers than fit into the second-level
cache. The floor is the bytes of the keys and values read, divided by the bandwidth of a device-to-device copy.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engines.live.kernels import elementwise
from engines.live.kernels.decode_attention import attend_gathered
from engines.live.kernels.decode_attention_triton import DecodeAttention, LaunchConfig
from engines.live.model.attention import PackedBatch, _attend_in_place
from engines.live.model.kv_cache import SlotPool
from engines.live.model.permutation import shape_config
from engines.live.serving.utilisation import measure_ceilings
from engines.pairs.shapes import ModelShape
from experiments.program.progress import console

CONTEXT, ROW_LENGTH, COLD_BYTES = 400, 512, 3 * 10**8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # without a GPU, the kernels can be interpreted
LIMIT = 1e-2  # relative error that bfloat16 operands may cause
LAUNCHES = (  # keys, warps, stages
    (32, 1, 4), (32, 2, 4), (32, 4, 4), (64, 2, 3), (64, 4, 2), (64, 4, 3), (64, 4, 4), (64, 8, 3),
    (128, 4, 2), (128, 4, 3), (128, 8, 2),
)  # fmt: skip
SIZES = (1, 8, 64)  # batch sizes
CHECKED = (1, 2, 5, 9)  # new tokens per sequence
TIMED = {"tinyllama-1.1b": (1, 2)}  # new tokens of a draft model; a target has 5


def relative_error(out: Tensor, reference: Tensor) -> float:
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def poison(like: Tensor, copies: int = 4) -> None:
    """Fill the memory that the allocator will return next for such a tensor with NaN."""
    blocks = [torch.full_like(like, torch.nan) for _ in range(copies)]
    del blocks


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(torch.bfloat16)


class Bench:
    """Sequences of mixed lengths (mean 400 tokens) in shuffled slots of several layers' pools. The rest is NaN."""

    def __init__(self, shape: ModelShape, size: int, queries: int, layers: int | None = None) -> None:
        self.shape, self.queries = shape, queries
        torch.manual_seed(size)
        spread = torch.linspace(-90, 90, size) if size > 1 else torch.zeros(1)
        first = (CONTEXT + spread).long()[torch.randperm(size)].cuda()
        lengths = first + queries
        token_bytes = 2 * shape.kv_heads * shape.head_dim * 2
        self.bytes = int(lengths.sum()) * token_bytes
        layers = layers or min(24, -(-COLD_BYTES // self.bytes))
        config = shape_config(shape.with_layers(layers))
        self.pool = SlotPool(config, size + 1, ROW_LENGTH, DEVICE, torch.bfloat16)
        slots = torch.randperm(size + 1)[:size].cuda()
        self.batch = PackedBatch(self.pool, slots, first, queries)
        hidden = torch.ones(size + 2, ROW_LENGTH, dtype=torch.bool, device=DEVICE)
        hidden[slots] = torch.arange(ROW_LENGTH, device=DEVICE) >= lengths[:, None]
        for table in (*self.pool.keys, *self.pool.values):
            table.normal_()
            table[hidden] = torch.nan
        self.query = random(size * queries, shape.heads, shape.head_dim)
        self.scale = shape.head_dim**-0.5

    def kernel(self, config: LaunchConfig | None) -> DecodeAttention:
        return DecodeAttention(
            self.batch.slots, self.batch.first, self.queries, self.shape.heads, self.pool.keys[0], self.scale, config
        )

    def flash(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return _attend_in_place(query, keys, values, self.batch, self.scale)

    def reference(self) -> Tensor:
        keys, values = (table[0].nan_to_num().float() for table in (self.pool.keys, self.pool.values))
        return attend_gathered(self.query.float(), keys, values, self.batch, self.scale)

    def time_us(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        layers = list(zip(self.pool.keys, self.pool.values, strict=True))
        calls = list(itertools.islice(itertools.cycle(layers), max(24, len(layers))))
        return graph_us(lambda: [attend(self.query, *layer) for layer in calls]) / len(calls)


def graph_us(work: Callable[[], object]) -> float:
    """Return the duration of a CUDA graph of the work in microseconds, the median of nine replays."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def twenty_times(function: Callable[..., Tensor], arguments: list[object]) -> None:
    for _ in range(20):
        function(*arguments)


def between_products(shape: ModelShape, tokens: int) -> list[tuple[str, float, float]]:
    """Return (name, worst relative error, microseconds) of each element-wise kernel."""
    rows = torch.randperm(3 * ROW_LENGTH, device=DEVICE)[:tokens]
    kv_size = (3, ROW_LENGTH, shape.kv_heads, shape.head_dim)
    angles = torch.rand(tokens, shape.head_dim // 2, device=DEVICE) * 400
    rotations = torch.cat([angles.cos(), angles.sin()], -1).to(torch.bfloat16)
    norms = random(shape.heads + shape.kv_heads, shape.head_dim) if shape.head_norms else None
    qkv = random(tokens, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
    calls: dict[str, tuple[Callable[..., Tensor], list[object], list[int]]] = {
        "add_rms_norm": (
            elementwise.add_rms_norm,
            [random(tokens, shape.hidden), random(tokens, shape.hidden), random(shape.hidden), 1e-5], [1],
        ),
        "rotate_and_store": (
            elementwise.rotate_and_store,
            [qkv, rotations, norms, 1e-6, rows, random(*kv_size), random(*kv_size)], [5, 6],
        ),
        "silu_mul": (elementwise.silu_mul, [random(tokens, 2 * shape.intermediate)], []),
    }  # fmt: skip
    results = []
    for name, (function, arguments, written) in calls.items():
        there = [a.cpu() if isinstance(a, Tensor) else a for a in arguments]
        expected = function(*there)
        poison(expected.cuda())
        out = function(*arguments)
        pairs = [(out.cpu(), expected)]
        for i in written:
            pairs.append((arguments[i].cpu(), there[i]))  # type: ignore[attr-defined,arg-type]
        worst = max(relative_error(*pair) for pair in pairs)
        results.append((name, worst, graph_us(partial(twenty_times, function, arguments)) / 20))
    return results


def compile_ahead(shape: ModelShape, queries: int, config: LaunchConfig) -> None:
    """Fill Triton's cache on disk in a process of its own, since compiling the launches in sequence takes minutes."""
    bench = Bench(shape, 1, queries, layers=1)
    try:
        bench.kernel(config)(bench.query, bench.pool.keys[0], bench.pool.values[0])
        torch.cuda.synchronize()
    except Exception as error:
        print(f"{label(config)} for {shape.name}, {queries} new tokens: {type(error).__name__}: {error}"[:150])


def compile_all(compile_one: Callable[..., None], wanted: Iterable[tuple[Any, ...]], jobs: int) -> None:
    """Call `compile_one` with each different tuple of arguments, in `jobs` processes."""
    begin, wanted = time.perf_counter(), dict.fromkeys(wanted)
    with console.status("compiling"), ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, *zip(*wanted, strict=True), chunksize=4))
    print(f"{torch.cuda.get_device_name()}: {len(wanted)} launches compiled, {time.perf_counter() - begin:.0f} s")


def label(config: LaunchConfig) -> str:
    return f"{config.keys}/{config.warps}/{config.stages}/{config.splits}"


def resolved(bench: Bench, config: LaunchConfig | None) -> LaunchConfig:
    kernel = bench.kernel(config)
    return dataclasses.replace(kernel.config, splits=kernel.splits)


def launches(bench: Bench) -> list[LaunchConfig]:
    """Return the launch in use, then the same with other splits, then others."""
    used = resolved(bench, None)
    assert used.splits is not None
    splits = [dataclasses.replace(used, splits=s) for s in (used.splits // 2, used.splits * 2) if 1 <= s <= 16]
    return list(dict.fromkeys([used, *splits, *(resolved(bench, LaunchConfig(*launch)) for launch in LAUNCHES)]))


def check(benches: list[tuple[int, Bench]]) -> bool:
    """Compare attention with its reference and print the worst error per shape. Returns whether all are correct."""
    errors: dict[str, float] = {}
    for _, bench in benches:
        reference, attend = bench.reference(), bench.kernel(None)
        for _ in range(2):  # the second time with used scratch memory
            poison(bench.query)
            out = attend(bench.query, bench.pool.keys[0], bench.pool.values[0])
            error = relative_error(out, reference)
            name = bench.shape.name
            errors[name] = max(errors.get(name, 0.0), error if error == error else float("inf"))
    for name, error in errors.items():
        print(f"attention {name:15} worst relative error {error:.1e} {'ok' if error < LIMIT else 'WRONG'}")
    return all(error < LIMIT for error in errors.values())


@torch.inference_mode()
def check_kernels(shapes: Sequence[ModelShape], budget_s: float, jobs: int) -> bool:
    """Check and time the kernels, and print the results. Returns whether all are correct.

    budget_s: limits the timing.
    """
    begin = time.perf_counter()
    checked = [
        (size, Bench(shape, size, queries, layers=1))
        for shape in shapes for size in SIZES for queries in CHECKED
    ]  # fmt: skip
    timed = [
        (size, Bench(shape, size, queries))
        for shape in shapes for queries in TIMED.get(shape.name, (5,)) for size in SIZES
    ]  # fmt: skip
    wanted = [(b.shape, b.queries, resolved(b, None)) for _, b in checked]
    wanted += [(b.shape, b.queries, config) for _, b in timed for config in launches(b)]
    compile_all(compile_ahead, wanted, jobs)

    right = True
    for shape in shapes:
        for tokens in (8, 320):
            results = between_products(shape, tokens)
            right &= all(error < LIMIT for _, error, _ in results)
            print(
                f"{shape.name:15} {tokens:3} tokens:", *(f"{n} {e:.0e} {us:.1f} us" for n, e, us in results), sep="  "
            )
    right &= check(checked)

    bandwidth = measure_ceilings(DEVICE, torch.bfloat16).copy_bytes_per_s / 1e6
    print(f"copy {bandwidth / 1e6:.2f} TB/s. Attention in us; launches as keys/warps/stages/splits, best five first")
    print(f"{'shape':15} {'new':>3} {'batch':>5} {'floor':>6} {'flash':>6} {'used':>6}  launches")
    for size, bench in timed:
        if time.perf_counter() - begin > budget_s:
            print(f"{bench.shape.name:15} {bench.queries:3} {size:5}  not timed: time is up")
            continue
        found: dict[LaunchConfig, float] = {}
        for config in launches(bench):
            try:
                found[config] = bench.time_us(bench.kernel(config))
            except Exception:  # too much shared memory; compile_ahead has printed the error
                continue
        used = resolved(bench, None)
        best = sorted(found, key=found.__getitem__)[:5]
        print(
            f"{bench.shape.name:15} {bench.queries:3} {size:5} {bench.bytes / bandwidth:6.1f} "
            f"{bench.time_us(bench.flash):6.1f} {found[used]:6.1f} ",
            *(f"{label(config)}: {found[config]:.1f}" for config in [*best, used]), sep="  ",
        )  # fmt: skip
    print(f"{time.perf_counter() - begin:.0f} s; {'all correct' if right else 'SOMETHING IS WRONG'}")
    return right
