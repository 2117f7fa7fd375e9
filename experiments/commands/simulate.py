"""pdv simulate: predict a run from a profile."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import Architecture
from engines.record.run import Run
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
from experiments.program.outputs import check_record
from experiments.program.progress import bar
from experiments.runner.predict import Prediction, check, parse_acceptance, predict, replayed

MODEL = "Prediction"
REPLAYED = [field.name for field in dataclasses.fields(Load) if field.name != "seed"]  # the live run has these


def simulate(
    profile: Annotated[Path, typer.Option("--profile", "-p", help="Folder that `pdv calibrate` wrote.")],
    architecture: ArchitectureOption = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Live run to repeat: its architecture, arrivals or clients, lengths and tape. Settings of the "
            "architecture that are given change it, those of the workload are refused; --seed draws the durations.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    acceptance: Annotated[
        str | None,
        typer.Option(
            help="profile (its alpha and spread over requests), tape (of --replay, or of the profile), 0.8 (each "
            "draft alike), 0.8,0.6,0.5 (rates by position), 0.7±0.1 (alpha and its spread; 0.7+-0.1 too), "
            "length=3.36,k=4 (mean acceptance length with the bonus token) or masks.jsonl (recorded masks) "
            "\\[default: tape with --replay, else profile].",
            rich_help_panel=MODEL,
        ),
    ] = None,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Go beyond what was measured.", rich_help_panel=MODEL)
    ] = False,
    no_jitter: Annotated[
        bool, typer.Option("--no-jitter", help="Every stage takes its mean time.", rich_help_panel=MODEL)
    ] = False,
    no_contention: Annotated[
        bool, typer.Option("--no-contention", help="Stages do not slow one another.", rich_help_panel=MODEL)
    ] = False,
    without: WithoutOption = None,
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
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the record.")] = Path("runs/simulated"),
) -> None:
    """Predict how a workload would be served, from a profile. Needs no torch and no device.

    The same scheduler as in the live engine runs on simulated time. The record has the same tables as a live
    run's, so `pdv compare`, `pdv trace` and `pdv figures` take it.

    Example: pdv simulate --profile profile --architecture pdv --concurrency 5 --acceptance 0.8 --out simulated/pdv-c5
    """
    if acceptance is None:
        acceptance = "profile" if replay is None else "tape"
    chosen = parse_acceptance(acceptance)
    load = Load(
        concurrency=concurrency, rate=rate, process=process, cv=cv, trace=trace, max_prompt=max_prompt,
        max_output=max_output, requests=requests, prompt_tokens=prompt_tokens, output_tokens=output_tokens,
        temperature=temperature, seed=seed,
    )  # fmt: skip
    limits = (draft_length, batch_limit, workers, slots, permits, hybrid)
    live = Run.load(replay) if replay is not None else None
    if live is not None:
        load.refuse(REPLAYED, "a replay asks what the live run was asked, when it was; leave one of the two out")
        check_seed(seed)
        workload = replayed(live)
        recorded = Architecture.from_dict(live.info["architecture"]) if architecture is None else None
        layout = chosen_architecture(recorded or architecture, *limits)
    else:
        layout = chosen_architecture(architecture, *limits)
        workload = chosen_workload(load)
    check_record("out", out)
    if holds(out, "run.toml") and Run.load(out).info["kind"] == "live":
        raise InputError("out", str(out), "a live run is recorded there, which would be lost; give another folder")
    off = [*(without or ()), *(["contention"] if no_contention else [])]
    settings = Prediction(
        Profile.load(profile), chosen, extrapolate=extrapolate, jitter=not no_jitter, without=off, seed=seed or 0,
    )  # fmt: skip
    if live is None:
        check(layout, workload, settings)
    with locked(out):
        with bar(f"{layout.name}, simulated") as progress:
            record = predict(layout, workload, settings, live=live, info={"name": out.name}, progress=progress)
        record.save(out)
    conclude(record, out)
