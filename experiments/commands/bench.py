"""pdv bench: exact outputs, stages vs. floors, engines vs. transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.bench.settings import defaults_for
from experiments.commands.arguments import DeviceOption, PairOption, one_device, option, parse_numbers
from experiments.program.outputs import check_output
from experiments.program.provenance import this_command
from experiments.runner.preflight import check_live

_stages, _engines = option("Stages"), option("Engines")


def bench(
    pair: PairOption = None,
    device: DeviceOption = "cpu",
    draft_length: Annotated[int | None, typer.Option(help="Draft length k \\[default: 4].")] = None,
    context: Annotated[
        int | None, _stages("Tokens per request before a draft or verify \\[default: 64; GPU: 400].")
    ] = None,
    batches: Annotated[str | None, _stages("Batch sizes of draft and verify \\[default: 1,4; GPU: 1,8,64].")] = None,
    prompts: Annotated[str | None, _stages("Tokens per prefill \\[default: 16,64; GPU: 128,512,960].")] = None,
    concurrencies: Annotated[
        str | None, _engines("Clients of the closed loops \\[default: 1,8; GPU: 1,10,64].")
    ] = None,
    prompt_tokens: Annotated[int | None, _engines("Tokens per prompt \\[default: 32; GPU: 128].")] = None,
    output_tokens: Annotated[int | None, _engines("Tokens per output \\[default: 32; GPU: 256].")] = None,
    architectures: Annotated[
        str | None, _engines("Architectures, by name or TOML file \\[default: target-only,baseline,pd,pdv].")
    ] = None,
    requests_per_client: Annotated[int | None, _engines("Maximum requests per client \\[default: 3].")] = None,
    peers: Annotated[bool, _engines("Also measure generation with transformers.", "--peers/--no-peers")] = True,
    budget_s: Annotated[
        float | None,
        typer.Option(help="Approximate total time once the pair is loaded, in seconds \\[default: 40; GPU: 300]."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the results. Each device and pair gets a subfolder.")
    ] = Path("results/bench"),
) -> None:
    """Check that outputs are exact, and compare stages with floors and engines with transformers.

    The floor of a stage is the shortest time that the measured copy bandwidth and matrix rate of the device allow.
    Engines serve closed loops. Generation with transformers uses the same pair and prompts. The columns of
    engines.csv are named as in cells.csv of an experiment. Exits with code 1 if a check fails.

    Example: pdv bench --device cuda --batches 1,8,64 --concurrencies 1,10,64 --out results/bench
    """
    kind = "cpu" if device == "cpu" else "cuda"
    lists = {"batches": batches, "prompts": prompts, "concurrencies": concurrencies}
    given: dict[str, Any] = {
        "pair": pair, "device": device, "draft_length": draft_length, "context": context,
        "prompt_tokens": prompt_tokens, "output_tokens": output_tokens, "requests_per_client": requests_per_client,
        "peers": peers, "budget_s": budget_s,
        **{name: tuple(parse_numbers(name, text)) for name, text in lists.items() if text is not None},
    }  # fmt: skip
    if architectures is not None:
        given["architectures"] = tuple(one_device(architectures))
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(defaults_for(kind), **chosen)
    check_output("out", out)
    check_live(device, settings.pair)

    from experiments.bench.report import bench_report, write_bench_report
    from experiments.bench.whole import run_bench
    from experiments.compare.report import results_console

    result, folder = run_bench(settings, out, this_command())
    results_console().print(bench_report(result))
    print(f"tables: {write_bench_report(result, folder).parent}")
    if result.failures:
        for failure in result.failures:
            typer.echo(f"not exact: {failure}", err=True)
        raise typer.Exit(1)
