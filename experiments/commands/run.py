"""pdv run: serve a workload with a live engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engines.errors import require_at_least
from engines.storage.locks import locked
from experiments.commands.arguments import (
    AUTO,
    DEFAULT_ARCHITECTURE,
    ArchitectureOption,
    BatchLimitOption,
    ConcurrencyOption,
    CvOption,
    DraftLengthOption,
    HybridOption,
    Load,
    MaxOutputOption,
    MaxPromptOption,
    OutputOption,
    PermitsOption,
    ProcessOption,
    PromptOption,
    RateOption,
    RequestsOption,
    SeedOption,
    SlotsOption,
    TemperatureOption,
    TraceOption,
    WorkersOption,
    chosen_architecture,
    chosen_workload,
)
from experiments.commands.outcome import conclude
from experiments.program.outputs import check_record
from experiments.program.progress import bar, console
from experiments.runner.cells import at_once, check_room
from experiments.runner.layouts import names_slots
from experiments.runner.preflight import check_fits, check_live, context_on, fill

LIVE = "Live engine"


def run(
    architecture: ArchitectureOption = None,
    pair: Annotated[
        str, typer.Option(help="`embedded`, or a folder with target/ and draft/ in it.", rich_help_panel=LIVE)
    ] = "embedded",
    target: Annotated[
        str | None, typer.Option(help="Folder of the target model, with --draft.", rich_help_panel=LIVE)
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="Folder of the draft model, with --target.", rich_help_panel=LIVE)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=LIVE)] = "cpu",
    max_context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of prompt and output together \\[default: the pair's limit].", rich_help_panel=LIVE
        ),
    ] = None,
    reserve_gib: Annotated[
        float | None,
        typer.Option(
            help="Memory to leave unused, in GiB \\[default: a tenth of the free memory, at most 4].",
            rich_help_panel=LIVE,
        ),
    ] = None,
    concurrency: ConcurrencyOption = None,
    rate: RateOption = None,
    process: ProcessOption = None,
    cv: CvOption = None,
    trace: TraceOption = None,
    max_prompt: MaxPromptOption = None,
    max_output: MaxOutputOption = None,
    requests: RequestsOption = None,
    prompt_tokens: PromptOption = None,
    output_tokens: OutputOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    draft_length: DraftLengthOption = None,
    batch_limit: BatchLimitOption = None,
    workers: WorkersOption = None,
    slots: SlotsOption = None,
    permits: PermitsOption = None,
    hybrid: HybridOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the record.")] = Path("runs/live"),
) -> None:
    """Serve a workload with a [bold]live[/bold] engine and save the record.

    The models answer real prompts (held-out text). The record is a folder with run.toml, the tables of requests,
    steps and spans, and the acceptance tape of each request. `pdv compare`, `pdv figures` and `pdv trace` read it.
    `pdv simulate --replay` simulates the same load.

    Example: pdv run --architecture pdv --concurrency 5 --prompt-tokens 32-96 --output-tokens 64 --out runs/pdv-c5
    """
    number = None if slots == AUTO else slots
    layout = chosen_architecture(architecture, draft_length, batch_limit, workers, number, permits, hybrid)
    load = Load(
        concurrency=concurrency, rate=rate, process=process, cv=cv, trace=trace, max_prompt=max_prompt,
        max_output=max_output, requests=requests, prompt_tokens=prompt_tokens, output_tokens=output_tokens,
        temperature=temperature, seed=seed,
    )  # fmt: skip
    workload = chosen_workload(load)
    for name, value, least in (("max_context", max_context, 8), ("reserve_gib", reserve_gib, 0)):
        if value is not None:
            require_at_least(name, value, least)
    check_room(workload, max_context)
    check_record("out", out)
    check_live(device, pair, target, draft)

    from engines.live.model.pairs import load_pair
    from experiments.runner.live import serve, started, warm_up

    memory: dict[str, Any] = {"max_context": max_context, "reserve_gib": reserve_gib}
    check_room(workload, context_on(layout, target or pair, draft, max_context))
    if number is None and not (slots is None and names_slots(architecture or DEFAULT_ARCHITECTURE)):
        layout = fill(layout, at_once(workload), target or pair, draft, device, **memory)
    else:
        check_fits(layout, target or pair, draft, device, **memory)
    with locked(out):
        with console.status("loading the pair"):
            models = load_pair(target or pair, draft, device)
        with console.status("starting"):
            engine = started(layout, models, [workload], max_context)
        with engine:
            with console.status("warming up"):
                warm_up(engine, [workload])
            with bar(f"{layout.name}, live") as progress:
                record = serve(engine, workload, target or pair, progress)
        record.info["name"] = out.name
        record.save(out)
    conclude(record, out)
