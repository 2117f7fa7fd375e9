"""pdv check: check one part of the engines."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from engines.errors import require_positive, require_whole
from engines.pairs.shapes import ModelShape, find_shape
from engines.policy.architecture import load_architecture
from engines.storage.files import replaced
from engines.storage.locks import locked
from experiments.bench.settings import defaults_for
from experiments.checks.hardware import check_gpu, check_shared_memory
from experiments.commands.arguments import DeviceOption, PairOption, one_device, parse_names, parse_numbers
from experiments.program.outputs import check_file, check_table, save_table
from experiments.program.progress import bar, console
from experiments.runner.preflight import check_fits, check_live

check = typer.Typer(
    name="check", rich_markup_mode="rich",
    help="Check one part of the engines: graphs, kernels, products, soak, caches or families.",
)  # fmt: skip

ArchitecturesOption = Annotated[str, typer.Option(help="Architectures, by name or TOML file.")]
ShapesOption = Annotated[str, typer.Option(help="Model shapes, by their names in permutation pairs.")]
BudgetOption = Annotated[float, typer.Option(help="Stop timing after this many seconds.")]
JobsOption = Annotated[int, typer.Option("--jobs", "-j", help="Parallel compilations.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the table.")]


@check.command()
def graphs(
    pair: Annotated[
        str | None, typer.Option(help="Pair, as for `pdv bench` \\[default: a permutation pair with few layers].")
    ] = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float32, or both \\[default: float32; GPU: bfloat16,float32].")
    ] = None,
    architectures: ArchitecturesOption = "baseline,pd,pdv",
    clients: Annotated[str, typer.Option(help="Clients of the closed loops.")] = "1,3,10,64",
    out: OutOption = Path("results/checks/graphs"),
) -> None:
    """Check that captured CUDA graphs produce the same tokens as uncaptured stages.

    Outputs may differ only where two tokens are equally likely within rounding. On a CPU, nothing is captured, but
    slots, padding and replays are checked the same way. Exits with code 1 if a token is wrong.

    Example: pdv check graphs --device cuda --clients 3,32
    """
    names, counts, table = one_device(architectures), parse_numbers("clients", clients), out / "graphs.csv"
    check_table("out", table, ("architecture", "drafted", "control_equal"))
    check_live(device, pair or "embedded")

    from experiments.checks import graphs as check
    from experiments.compare.report import results_console

    kind, started = "cpu" if device == "cpu" else "cuda", time.perf_counter()
    dtypes = parse_names(dtype) if dtype else list(check.DTYPES)[kind == "cpu" :]
    with locked(out):
        with bar("graphs") as progress:
            rows = check.check_all(pair or check.PAIRS[kind], device, dtypes, names, counts, progress)
        save_table(rows, table)
    results_console().print(check.report(rows))
    wrong = rows[rows["wrong"] > 0]
    for row in wrong.to_dict("records"):
        case = f"{row['dtype']} {row['architecture']}, k {row['draft_length']}, {row['decoding']}"
        print(f"WRONG: {case}, {row['clients']} clients: {row['wrong']} of {row['requests']}, first {row['first']}")
    _conclude(wrong.empty, started)


@check.command()
def kernels(
    shapes: ShapesOption = "llama2-7b,tinyllama-1.1b,llama3.1-8b,qwen3-14b",
    budget_s: BudgetOption = 85.0,
    jobs: JobsOption = 12,
) -> None:
    """Check the Triton kernels against PyTorch, and compare attention launches with their floor (GPU only).

    Exits with code 1 if a kernel is wrong.

    Example: pdv check kernels --shapes llama2-7b
    """
    chosen = _kernels_of(shapes, budget_s, jobs)

    from engines.live.kernels.decode_attention_triton import LEAST_SHARED_BYTES

    check_shared_memory(LEAST_SHARED_BYTES)

    from experiments.checks.kernels import check_kernels

    if not check_kernels(chosen, budget_s, jobs):
        raise typer.Exit(1)


@check.command()
def products(
    shapes: ShapesOption = "llama2-7b,tinyllama-1.1b",
    tokens: Annotated[str, typer.Option(help="Tokens per product, 1 to 64.")] = "8,40",
    budget_s: BudgetOption = 120.0,
    jobs: JobsOption = 14,
) -> None:
    """Check the skinny GEMMs against the library's, and compare launches with their floor (GPU only).

    Exits with code 1 if a product is wrong.

    Example: pdv check products --shapes llama2-7b --tokens 8,40
    """
    counts = parse_numbers("tokens", tokens)
    chosen = _kernels_of(shapes, budget_s, jobs)

    from engines.live.kernels.dependent_launch import HOPPER_SHARED_BYTES
    from engines.live.kernels.skinny_gemm import MOST_TOKENS

    require_whole("tokens", counts[-1], 1, MOST_TOKENS)
    check_shared_memory(HOPPER_SHARED_BYTES)

    from experiments.checks.products import check_products

    if not check_products(chosen, counts, budget_s, jobs):
        raise typer.Exit(1)


@check.command()
def soak(
    device: DeviceOption = "cpu",
    architectures: ArchitecturesOption = "pdv,pd,baseline",
    requests: Annotated[int, typer.Option("--requests", "-n", help="Requests per architecture.")] = 2000,
    clients: Annotated[int, typer.Option(help="Clients of the closed loop.")] = 48,
    out: OutOption = Path("results/checks/soak"),
) -> None:
    """Check that nothing is lost or leaks while many requests are served and many are cancelled.

    Counts requests and slots, watches memory, and checks every output, which a small permutation pair makes known in
    advance. Exits with code 1 if anything is wrong.

    Example: pdv check soak --device cuda --requests 20000
    """
    names, table = one_device(architectures), out / "soak.csv"
    require_whole("clients", clients, 1)
    check_table("out", table, ("architecture", "finished", "cancelled"))
    check_live(device)

    from experiments.bench.engines import for_clients
    from experiments.checks import soak as check

    require_whole("requests", requests, check.LOOKS)
    layouts = [for_clients(load_architecture(name), check.SLOTS) for name in names]
    for layout in layouts:
        check_fits(layout, check.PAIR, device=device, max_context=check.CONTEXT)
    started, rows = time.perf_counter(), []
    with locked(out):
        for layout in layouts:
            try:
                with bar(layout.name) as progress:
                    rows.append(check.soak(layout, device, requests, clients, progress))
            except AssertionError as error:
                typer.echo(f"pdv: {layout.name}: {' '.join(str(error).split())}", err=True)
                raise typer.Exit(1) from error
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
            save_table(pd.DataFrame(rows), table)
    _conclude(True, started)


@check.command()
def caches(
    pair: PairOption = None,
    device: DeviceOption = "cpu",
    architectures: ArchitecturesOption = "baseline,pd,pdv",
    draft_length: Annotated[int, typer.Option(help="Draft length k.")] = 4,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens per prompt.")] = 32,
    output_tokens: Annotated[int, typer.Option(help="Tokens per output, at most 48.")] = 32,
    out: OutOption = Path("results/checks/caches"),
) -> None:
    """Check the KV cache pools against a plain recomputation with transformers.

    Also damages slots on purpose, which the check must notice. Exits with code 1 if a cache is wrong or damage goes
    unnoticed.

    Example: pdv check caches --pair embedded --architectures pdv
    """
    names, table = one_device(architectures), out / "caches.csv"
    defaults = defaults_for("cpu" if device == "cpu" else "cuda")
    settings = dataclasses.replace(
        defaults, pair=pair or defaults.pair, device=device, architectures=tuple(names), draft_length=draft_length,
        prompt_tokens=prompt_tokens, output_tokens=output_tokens,
    )  # fmt: skip
    check_table("out", table, ("architecture", "sequences", "failure"))
    check_live(device, settings.pair)

    from experiments.bench.caches import check_caches, check_room

    check_room(settings)
    started = time.perf_counter()
    with locked(out):
        with bar("caches") as progress:
            found = check_caches(settings, progress.part)
        rows = [
            {"architecture": each.architecture, "sequences": each.sequences, **each.worst, "failure": each.failure}
            for each in found
        ]
        save_table(pd.DataFrame(rows), table)
    for each in found:
        print(f"{each.architecture}: {each.sequences} sequences; {each.failure or 'equal to the recomputation'}")
    _conclude(all(each.ok for each in found), started)


@check.command()
def families(
    family: Annotated[
        list[str] | None, typer.Option(help="Check only this family, such as llama. Repeatable.")
    ] = None,
    out: OutOption = Path("results/checks/families"),
) -> None:
    """Check a tiny random model of every family in transformers against `generate`.

    Each family must be served exactly or refused when it is loaded. All families take minutes on a CPU. Exits with
    code 1 if a token is wrong or serving fails.

    Example: pdv check families --family llama --family gpt2
    """
    table = out / "families.csv"
    check_table("out", table, ("family", "variant", "outcome"))
    check_file("out", out / "families.txt")
    check_live("cpu")
    with console.status("listing the families"):
        from experiments.checks import families as check

        variants = check.variants_of(family or [])
    started, rows = time.perf_counter(), []
    with locked(out):
        with bar("families") as progress:
            for row in check.table(variants):
                rows.append(row)
                progress(len(rows), len(variants))
        save_table(pd.DataFrame([dataclasses.asdict(row) for row in rows]), table)
        text = check.summary(rows, time.perf_counter() - started)
        with replaced(out / "families.txt") as beside:
            beside.write_text(text, encoding="utf-8")
    print(text.split("\n\nexact:")[0])
    _conclude(all(row.outcome not in (check.WRONG, check.FAILED) for row in rows), started)


def _kernels_of(shapes: str, budget_s: float, jobs: int) -> list[ModelShape]:
    """Return the shapes. Raises InputError, also if kernels cannot be compiled here."""
    require_positive("budget_s", budget_s)
    require_whole("jobs", jobs, 1)
    chosen = [find_shape(name) for name in parse_names(shapes)]
    check_gpu()
    return chosen


def _conclude(right: bool, started: float) -> None:
    """Print whether everything is correct; if not, exit with code 1."""
    print(f"{time.perf_counter() - started:.0f} s; {'all correct' if right else 'SOMETHING IS WRONG'}")
    if not right:
        raise typer.Exit(1)
