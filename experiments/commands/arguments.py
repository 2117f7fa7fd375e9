"""Options that several commands share, and the workload and architecture that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engines.architecture import Architecture, load_architecture
from engines.errors import InputError
from engines.traces import read_trace
from engines.workload import PROCESSES, Workload, make_workload
from experiments.options import MOST_SEED, adjusted, at_least, parse_lengths, parse_slots, positive

LAYOUT, LOAD = "Architecture", "Workload"

ArchitectureOption = Annotated[
    str,
    typer.Option(
        "--architecture", "-a", help="baseline, pd, pdv, or a .toml file that describes one.", rich_help_panel=LAYOUT
    ),
]
DraftLengthOption = Annotated[
    str | None,
    typer.Option(help="Draft length k: 4 (fixed), 2-8 or adaptive (follows acceptance).", rich_help_panel=LAYOUT),
]
BatchLimitOption = Annotated[
    str | None, typer.Option(help="Largest batches (requests), as draft=12,verify=24.", rich_help_panel=LAYOUT)
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Workers of each lane (baseline: requests served at once).", rich_help_panel=LAYOUT)
]
SlotsOption = Annotated[
    str | None,
    typer.Option(
        help="Places in the key-value pool (requests). Live also auto: as many as fit the device and the load can "
        "use, 1024 at most.",
        rich_help_panel=LAYOUT,
    ),
]
PermitsOption = Annotated[
    int | None,
    typer.Option(help="Stages that may run on the device at once; 1 makes lanes take turns.", rich_help_panel=LAYOUT),
]
HybridOption = Annotated[
    int | None,
    typer.Option(
        help="Draft and verify run as one step at this many active requests or fewer; 0: never.",
        rich_help_panel=LAYOUT,
    ),
]
ConcurrencyOption = Annotated[
    int | None,
    typer.Option("--concurrency", "-c", help="Closed loop: clients that wait for answers.", rich_help_panel=LOAD),
]
RateOption = Annotated[
    float | None, typer.Option("--rate", "-r", help="Open loop: arrivals per second.", rich_help_panel=LOAD)
]
ProcessOption = Annotated[
    str, typer.Option(help="Arrivals of the open loop: poisson, gamma or fixed.", rich_help_panel=LOAD)
]
CvOption = Annotated[float, typer.Option(help="Coefficient of variation of gamma arrivals (0.001 to 100).", rich_help_panel=LOAD)]
TraceOption = Annotated[
    Path | None,
    typer.Option("--trace", help="Arrivals and lengths from a trace (.csv or .jsonl, plain or gzip).", rich_help_panel=LOAD),
]
MaxPromptOption = Annotated[
    int | None, typer.Option(help="Cut a trace's prompts to this many tokens.", rich_help_panel=LOAD)
]
MaxOutputOption = Annotated[
    int | None, typer.Option(help="Cut a trace's outputs to this many tokens.", rich_help_panel=LOAD)
]
RequestsOption = Annotated[
    int | None,
    typer.Option(
        "--requests", "-n", help="Number of requests \\[default: 32, or all of a trace].", rich_help_panel=LOAD
    ),
]
PromptOption = Annotated[
    str, typer.Option(help="Prompt length in tokens: 64, 16-96 or 64~0.5[16-256].", rich_help_panel=LOAD)
]
OutputOption = Annotated[
    str, typer.Option(help="Output length in tokens, written the same way.", rich_help_panel=LOAD)
]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy; above 0 samples.", rich_help_panel=LOAD)]
SeedOption = Annotated[int, typer.Option(help="Same seed, same workload.", rich_help_panel=LOAD)]


def chosen_architecture(
    name: str,
    draft_length: str | None,
    batch_limit: str | None,
    workers: int | None,
    slots: str | None,
    permits: int | None,
    hybrid: int | None,
) -> Architecture:
    """The architecture that the options describe. Raises InputError."""
    return adjusted(
        load_architecture(name),
        draft_length=draft_length,
        batch_limit=batch_limit,
        workers=workers,
        slots=parse_slots(slots),
        permits=permits,
        hybrid=hybrid,
    )


def chosen_workload(
    concurrency: int | None,
    rate: float | None,
    process: str,
    cv: float,
    trace: Path | None,
    max_prompt: int | None,
    max_output: int | None,
    requests: int | None,
    prompt_tokens: str,
    output_tokens: str,
    temperature: float,
    seed: int,
) -> Workload:
    """The workload that the options describe; without any load, a closed loop of 4 clients. Raises InputError."""
    given = {"concurrency": concurrency, "rate": rate, "trace": trace}
    loads = {name: str(value) for name, value in given.items() if value is not None}
    if len(loads) > 1:
        raise InputError(", ".join(loads), ", ".join(loads.values()), "give one of them, since each is a load")
    for name, value in (("max_prompt", max_prompt), ("max_output", max_output)):
        at_least(name, value, 1)
        if value is not None and trace is None:
            raise InputError(name, value, "only a --trace is cut; choose --prompt-tokens and --output-tokens instead")
    at_least("requests", requests, 1)
    at_least("concurrency", concurrency, 1)
    positive("rate", rate)
    positive("cv", cv)
    at_least("temperature", temperature, 0)
    at_least("seed", seed, 0)
    if seed > MOST_SEED:
        raise InputError("seed", seed, f"use {MOST_SEED} at most")
    if process not in PROCESSES:
        raise InputError("process", process, f"use {', '.join(PROCESSES)}")
    prompts, outputs = parse_lengths("prompt_tokens", prompt_tokens), parse_lengths("output_tokens", output_tokens)
    if trace is not None:
        return read_trace(trace, requests, max_prompt, max_output)
    return make_workload(
        requests or 32,
        prompts,
        outputs,
        concurrency=concurrency if concurrency or rate else 4,
        rate=rate,
        process=process,
        cv=cv,
        seed=seed,
        temperature=temperature,
    )
