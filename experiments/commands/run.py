"""pdv run: serve a workload with a live engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from calibrate.profile import Profile
from engines.errors import InputError, require_at_least
from engines.pairs.origin import pair_name
from engines.pairs.permutation import PREFIX, parse_pair
from engines.policy.architecture import Architecture
from engines.policy.draft_length import LoadAdaptiveDraftLength
from engines.storage.locks import locked
from experiments.commands import arguments as shared
from experiments.commands.outcome import conclude
from experiments.program.outputs import check_record
from experiments.program.progress import bar, console
from experiments.program.provenance import made_by
from experiments.runner.cells import at_once, check_room
from experiments.runner.layouts import names_slots
from experiments.runner.preflight import check_fits, check_live, context_on, fill
from sim.step_times import check_measured

_live = shared.option("Live engine")


def run(
    architecture: shared.ArchitectureOption = None,
    pair: shared.ModelsOption = "embedded",
    target: shared.TargetOption = None,
    draft: shared.DraftOption = None,
    device: shared.DeviceOption = "cpu",
    max_context: Annotated[
        int | None, _live("Maximum tokens of prompt and output together \\[default: the pair's limit].")
    ] = None,
    reserve_gib: Annotated[
        float | None, _live("Memory to leave unused, in GiB \\[default: a tenth of the free memory, at most 4].")
    ] = None,
    concurrency: shared.ConcurrencyOption = None,
    rate: shared.RateOption = None,
    process: shared.ProcessOption = None,
    cv: shared.CvOption = None,
    trace: shared.TraceOption = None,
    max_prompt: shared.MaxPromptOption = None,
    max_output: shared.MaxOutputOption = None,
    requests: shared.RequestsOption = None,
    prompt_tokens: shared.PromptOption = None,
    output_tokens: shared.OutputOption = None,
    temperature: shared.TemperatureOption = None,
    seed: shared.SeedOption = None,
    draft_length: shared.DraftLengthOption = None,
    batch_limit: shared.BatchLimitOption = None,
    workers: shared.WorkersOption = None,
    slots: shared.SlotsOption = None,
    permits: shared.PermitsOption = None,
    hybrid: shared.HybridOption = None,
    profile: Annotated[
        Path | None, _live("Profile of this device and pair, for a draft length that follows the load.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the record.")] = Path("runs/live"),
) -> None:
    """Serve a workload with a [bold]live[/bold] engine and save the record.

    Prompts are held-out text. The record is a folder with run.toml, tables of requests, steps and spans, and an
    acceptance tape per request. `pdv compare`, `pdv figures` and `pdv trace` read it. `pdv simulate --replay`
    simulates the same load.

    Example: pdv run --architecture pdv --concurrency 5 --prompt-tokens 32-96 --output-tokens 64 --out runs/pdv-c5
    """
    number = None if slots == shared.AUTO else slots
    layout = shared.chosen_architecture(architecture, draft_length, batch_limit, workers, number, permits, hybrid)
    load = shared.Load(
        concurrency=concurrency, rate=rate, process=process, cv=cv, trace=trace, max_prompt=max_prompt,
        max_output=max_output, requests=requests, prompt_tokens=prompt_tokens, output_tokens=output_tokens,
        temperature=temperature, seed=seed,
    )  # fmt: skip
    workload = shared.chosen_workload(load)
    for name, value, least in (("max_context", max_context, 8), ("reserve_gib", reserve_gib, 0)):
        if value is not None:
            require_at_least(name, value, least)
    check_room(workload, max_context)
    check_record("out", out)
    called = parse_pair(pair).name if target is None and pair.startswith(PREFIX) else pair_name(target or pair, draft)
    weighed = _weighed(layout, profile, called)
    check_live(device, pair, target, draft)

    from engines.live.model.pairs import load_pair
    from experiments.runner.live import serve, started, warm_up

    _check_device(weighed, profile, device)
    memory: dict[str, Any] = {"max_context": max_context, "reserve_gib": reserve_gib}
    check_room(workload, context_on(layout, target or pair, draft, max_context))
    if number is None and not (slots is None and names_slots(architecture or shared.DEFAULT_ARCHITECTURE)):
        layout = fill(layout, at_once(workload), target or pair, draft, device, **memory)
    else:
        check_fits(layout, target or pair, draft, device, **memory)
    with locked(out):
        with console.status("loading the pair"):
            models = load_pair(target or pair, draft, device)
        with console.status("starting"):
            engine = started(layout, models, [workload], max_context, weighed)
        with engine:
            with console.status("warming up"):
                warm_up(engine, [workload])
            with bar(f"{layout.name}, live") as progress:
                record = serve(engine, workload, target or pair, progress)
        record.info |= {"name": out.name, **made_by()}
        record.save(out)
    conclude(record, out)


def _weighed(layout: Architecture, folder: Path | None, pair: str) -> Profile | None:
    """Return the profile that the draft length weighs.

    Raises InputError if it is missing, not needed, of another pair, or lacks a draft length.
    """
    follows = isinstance(layout.draft_length, LoadAdaptiveDraftLength)
    if folder is None:
        if follows:
            remedy = f"draft length {layout.draft_length.label} weighs measured costs; give the folder of a profile"
            raise InputError("profile", None, remedy)
        return None
    if not follows:
        raise InputError("profile", str(folder), "only a draft length that follows the load needs one; leave it out")
    profile = Profile.load(folder)
    if profile.info["pair"] != pair:
        raise InputError("profile", str(folder), f"it is of {profile.info['pair']!r}; give a profile of {pair!r}")
    check_measured(profile, layout.draft_length)
    return profile


def _check_device(profile: Profile | None, folder: Path | None, device: str) -> None:
    """Raise InputError if the profile was measured on another device."""
    from engines.live.model.pairs import find_device
    from engines.live.serving.serve import device_name

    here = device_name(find_device(device))
    if profile is not None and profile.info["device"] != here:
        remedy = f"it was measured on {profile.info['device']}, and this is {here}; calibrate here"
        raise InputError("profile", str(folder), remedy)
