"""pdv simulate: predict a run from a profile."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import Architecture
from engines.record.run import Run, read_info
from engines.storage.files import holds
from engines.storage.locks import locked
from experiments.commands.arguments import (
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
    WithoutOption,
    WorkersOption,
    check_seed,
    chosen_architecture,
    chosen_workload,
)
from experiments.commands.outcome import conclude
from experiments.compare.fleet_report import COLUMNS as FLEET_COLUMNS
from experiments.compare.fleet_report import print_fleet
from experiments.program.outputs import check_record, check_table, save_table
from experiments.program.progress import bar
from experiments.program.provenance import made_by
from experiments.runner.beyond import beyond_text
from experiments.runner.predict import (
    CLOSED_FORM,
    FROM_PROFILE,
    AcceptanceChoice,
    Prediction,
    check,
    parse_acceptance,
    predict,
    predict_fleet,
    replayed,
    without_live,
)
from sim.routers import Fleet

MODEL, FLEET = "Prediction", "Fleet"
OUT = Path("simulated/run")
DEFAULTS = {CLOSED_FORM: "closed form of the permutation pair", FROM_PROFILE: "as the profile measured it"}
REPLAYED = [field.name for field in dataclasses.fields(Load) if field.name != "seed"]  # the live run has these


def simulate(
    profile: Annotated[Path, typer.Option("--profile", "-p", help="Folder of a profile, from `pdv calibrate`.")],
    architecture: ArchitectureOption = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a live run to replay, with its architecture, arrivals or clients, lengths and acceptance "
            "tape. Options of the architecture change it. Options of the workload are refused, except for --seed, "
            "which draws the durations.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    acceptance: Annotated[
        str | None,
        typer.Option(
            help="profile (alpha and spread over requests, as measured), tape (of the live run or of the profile), "
            "0.8 (alpha), 0.8,0.6,0.5 (rates by position), 0.7±0.1 or 0.7+-0.1 (alpha and spread), length=3.36,k=4 "
            "(mean acceptance length, with the bonus token) or masks.jsonl (recorded masks) "
            "\\[default: tape with --replay; else, as in an experiment, the closed form of the profile's permutation "
            "pair, or profile for another pair].",
            rich_help_panel=MODEL,
        ),
    ] = None,
    extrapolate: Annotated[
        bool,
        typer.Option("--extrapolate", help="Extrapolate beyond the measured range.", rich_help_panel=MODEL),
    ] = False,
    no_jitter: Annotated[
        bool, typer.Option("--no-jitter", help="Give every stage its mean duration.", rich_help_panel=MODEL)
    ] = False,
    no_contention: Annotated[
        bool, typer.Option("--no-contention", help="Same as --without contention.", rich_help_panel=MODEL)
    ] = False,
    without: WithoutOption = None,
    max_context: Annotated[
        int | None,
        typer.Option(
            help="Maximum tokens of prompt and output together. More than the pair supports needs --extrapolate "
            "\\[default: the pair's limit].",
            rich_help_panel=MODEL,
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Number of replicas \\[default: 1].", rich_help_panel=FLEET)
    ] = None,
    router: Annotated[
        str | None,
        typer.Option(
            help="Router in front of the replicas: round-robin or least-loaded \\[default: round-robin].",
            rich_help_panel=FLEET,
        ),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(
            help="CSV file for all metrics: one row for the fleet and one per replica.",
            rich_help_panel=FLEET,
        ),
    ] = None,
    no_record: Annotated[
        bool,
        typer.Option("--no-record", help="Print the metrics, but save no record.", rich_help_panel=FLEET),
    ] = False,
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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=f"Folder for the record \\[default: {OUT}].")
    ] = None,
) -> None:
    """Simulate a workload from a profile. Needs no torch and no device.

    The simulator runs the scheduler of the live engine on simulated time. It writes the same record as a live run,
    for `pdv compare`, `pdv figures` and `pdv trace`.

    Example: pdv simulate --profile profile --architecture pdv --concurrency 5 --acceptance 0.8 --out simulated/pdv-c5
    """
    chosen = None if acceptance is None else parse_acceptance(acceptance)
    load = Load(
        concurrency=concurrency, rate=rate, process=process, cv=cv, trace=trace, max_prompt=max_prompt,
        max_output=max_output, requests=requests, prompt_tokens=prompt_tokens, output_tokens=output_tokens,
        temperature=temperature, seed=seed,
    )  # fmt: skip
    limits = (draft_length, batch_limit, workers, slots, permits, hybrid)
    fleet = _fleet(replicas, router)
    of_fleet = fleet.replicas > 1 or metrics is not None or no_record
    live = Run.load(replay) if replay is not None else None
    if live is not None:
        load.refuse(REPLAYED, "a replay takes the workload from the live run; omit this option or --replay")
        for name, value in (("replicas", replicas), ("metrics", metrics), ("max_context", max_context)):
            if value is not None:
                raise InputError(name, str(value), "a replay is of one engine; omit this option or --replay")
        if no_record:
            raise InputError("no_record", True, "a replay is compared by its record; omit this option or --replay")
        check_seed(seed)
        workload = replayed(live)
        recorded = Architecture.from_dict(live.info["architecture"]) if architecture is None else None
        layout = chosen_architecture(recorded or architecture, *limits)
    else:
        layout = chosen_architecture(architecture, *limits)
        workload = chosen_workload(load)
    fleet.check(layout)
    if no_record and out is not None:
        raise InputError("out", str(out), "--no-record saves nothing there; omit one of the two")
    out = out or OUT
    if metrics is not None:
        check_table("metrics", metrics, FLEET_COLUMNS)
    if not no_record:
        _check_out(out)
    known = Profile.load(profile)
    if chosen is None:
        chosen = AcceptanceChoice("tape") if live is not None else without_live(known)
    off = [*(without or ()), *(["contention"] if no_contention else [])]
    settings = Prediction(
        known, chosen, extrapolate=extrapolate, jitter=not no_jitter, without=off, seed=seed or 0,
        max_context=max_context,
    )  # fmt: skip
    if live is None:
        check(layout, workload, settings)
    info = {"name": out.name, **made_by()}
    record: Run | None = None
    table: pd.DataFrame | None = None
    beyond: dict[str, int] = {}
    with nullcontext() if no_record else locked(out):
        with bar(f"{layout.name}, simulated") as progress:
            if of_fleet:
                record, table, beyond = predict_fleet(
                    fleet, layout, workload, settings, record=not no_record, info=info, progress=progress
                )
            else:
                record = predict(layout, workload, settings, live=live, info=info, progress=progress)
        if record is not None:
            record.save(out)
    if acceptance is None and live is None:
        print(f"acceptance: {DEFAULTS[chosen]}; --acceptance takes another")
    if table is not None:
        if metrics is not None:
            save_table(table.reset_index(), metrics)
        print_fleet(table)
    if record is not None:
        conclude(record, out)
    elif beyond:
        print(f"beyond the profile: {beyond_text(beyond, len(workload.requests))}")


def _fleet(replicas: int | None, router: str | None) -> Fleet:
    """Return the fleet that the options describe. Raises InputError, also for a router that has no choice."""
    fleet = Fleet(1 if replicas is None else replicas, router or Fleet().router)
    if router is not None and fleet.replicas == 1:
        raise InputError("router", router, "one replica needs no router; give --replicas 2 or more")
    return fleet


def _check_out(out: Path) -> None:
    check_record("out", out)
    if holds(out, "run.toml") and read_info(out)[1]["kind"] == "live":
        raise InputError("out", str(out), "it holds a live run, which would be overwritten; give another folder")
