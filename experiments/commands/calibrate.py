"""pdv calibrate: measure a device and a pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibrate.parts import check_parts, remove_parts
from calibrate.profile import PROFILE_FILES
from engines.errors import require_positive
from engines.storage.locks import locked
from experiments.commands.arguments import DeviceOption, DraftOption, ModelsOption, TargetOption, parse_numbers
from experiments.program.outputs import UNFINISHED, check_ours, check_output
from experiments.program.progress import bar, console
from experiments.program.provenance import made_by, this_command
from experiments.runner.preflight import check_calibration_fits, check_live, grid_of


def calibrate(
    pair: ModelsOption = "embedded",
    target: TargetOption = None,
    draft: DraftOption = None,
    device: DeviceOption = "cpu",
    batches: Annotated[str, typer.Option(help="Batch sizes of draft and verify.")] = "1,2,4,6,12",
    draft_lengths: Annotated[str, typer.Option(help="Draft lengths k. 0 is a verify without drafts.")] = "4",
    contexts: Annotated[str, typer.Option(help="Tokens per request before a draft or verify.")] = "32,256",
    prompt_tokens: Annotated[str, typer.Option(help="Total tokens of a prefill.")] = "16,64,128,256",
    packed: Annotated[str, typer.Option(help="Prompts per prefill.")] = "1",
    budget_s: Annotated[
        float, typer.Option(help="Approximate time for the measurements, in seconds. Short live runs come on top.")
    ] = 120.0,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would be measured and for how long, and exit.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the profile.")] = Path("profile"),
) -> None:
    """Measure stage durations, contention, host times and acceptance on this device, into a profile.

    A profile is a folder of readable tables: stage_costs.csv (durations of segments alone), contention.csv (their
    slowdown when they run together), host_times.csv and acceptance.csv. `pdv simulate` reads it. Include every draft
    length, and the largest batch, prompt and context that your simulations need.

    Example: pdv calibrate --device cpu --batches 1,2,4,8 --draft-lengths 4 --budget-s 60 --out profile

    On a GPU, all captured sizes between the smallest and the largest are measured as well.

    Example: pdv calibrate --device cuda --batches 1,64 --draft-lengths 1,2,4,8 --contexts 64,256,512,1250
    --prompt-tokens 16,4096 --packed 1,4 --budget-s 300 --out profile
    """
    given = {
        "batches": batches, "draft_lengths": draft_lengths, "contexts": contexts, "prompt_tokens": prompt_tokens,
        "packed": packed,
    }  # fmt: skip
    points = {name: parse_numbers(name, text, least=int(name != "draft_lengths")) for name, text in given.items()}
    require_positive("budget_s", budget_s)
    if plan:
        _print_plan(points, budget_s, device)
        return
    check_output("out", out, PROFILE_FILES)
    check_ours("out", out, PROFILE_FILES)
    check_parts(out / UNFINISHED)
    check_live(device, pair, target, draft)

    from engines.live.model.pairs import load_pair
    from experiments.runner.live import measure

    check_calibration_fits(points, target or pair, draft, device)
    with locked(out):
        with console.status("loading the pair"):
            models = load_pair(target or pair, draft, device)
        with bar("calibrating") as progress:
            profile = measure(models, points, budget_s, this_command(), out / UNFINISHED, progress)
        profile.info |= made_by()
        profile.save(out)
        remove_parts(out / UNFINISHED)
    print(f"profile: {out}")


def _print_plan(points: dict[str, list[int]], budget_s: float, device: str) -> None:
    from calibrate.measure import plan

    grid = grid_of(points)
    if device.startswith("cuda"):
        grid = grid.with_captured_sizes()
    parts = plan(grid, budget_s)
    for part, what, seconds in parts:
        print(f"{part.replace('_', ' '):12} {what}: about {seconds:.0f} s")
    minutes = sum(seconds for _, _, seconds in parts) / 60
    print(f"{'total':12} about {minutes:.1f} minutes, plus the time to load the pair")
