"""pdv simulate: predict a run from a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibrate.profile import Profile
from engines.architecture import Architecture
from engines.errors import InputError
from engines.locks import locked
from engines.run import Run
from experiments.commands.arguments import (
    ArchitectureOption,
    BatchLimitOption,
    ConcurrencyOption,
    CvOption,
    DraftLengthOption,
    HybridOption,
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
from experiments.options import adjusted, parse_slots
from experiments.outputs import check_record
from experiments.predict import Prediction, parse_acceptance, predict, replayed
from experiments.progress import bar

MODEL = "Prediction"


def simulate(
    profile: Annotated[Path, typer.Option("--profile", "-p", help="Folder that `pdv calibrate` wrote.")],
    architecture: ArchitectureOption = "pdv",
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Live run to repeat: its architecture, arrivals, lengths and tape. Settings given here change it.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    acceptance: Annotated[
        str | None,
        typer.Option(
            help="profile (its alpha and spread over requests), tape (of --replay, or of the profile), "
            "0.8 (each draft alike), 0.8,0.6,0.5 (rates by position) or 0.7±0.1 (alpha and its spread; 0.7+-0.1 too) "
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
    concurrency: ConcurrencyOption = None,
    rate: RateOption = None,
    process: ProcessOption = "poisson",
    cv: CvOption = 1.0,
    trace: TraceOption = None,
    max_prompt: MaxPromptOption = None,
    max_output: MaxOutputOption = None,
    requests: RequestsOption = None,
    prompt_tokens: PromptOption = "64",
    output_tokens: OutputOption = "64",
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
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
    chosen = parse_acceptance(acceptance or ("tape" if replay else "profile"))
    live = Run.load(replay) if replay is not None else None
    if live is not None:
        load = {"concurrency": concurrency, "rate": rate, "trace": trace}
        for name, value in load.items():
            if value is not None:
                raise InputError(name, str(value), "a replay has the live run's load; leave one of them out")
        layout = adjusted(
            Architecture.from_dict(live.info["architecture"]), draft_length=draft_length, batch_limit=batch_limit,
            workers=workers, slots=parse_slots(slots), permits=permits, hybrid=hybrid,
        )  # fmt: skip
        workload = replayed(live)
    else:
        layout = chosen_architecture(architecture, draft_length, batch_limit, workers, slots, permits, hybrid)
        workload = chosen_workload(
            concurrency,
            rate,
            process,
            cv,
            trace,
            max_prompt,
            max_output,
            requests,
            prompt_tokens,
            output_tokens,
            temperature,
            seed,
        )
    check_record("out", out)
    settings = Prediction(
        Profile.load(profile), chosen, extrapolate=extrapolate, jitter=not no_jitter, contention=not no_contention,
        seed=seed,
    )  # fmt: skip
    with locked(out):
        with bar(f"{layout.name}, simulated") as progress:
            record = predict(layout, workload, settings, live=live, info={"name": out.name}, progress=progress)
        record.save(out)
    conclude(record, out)
