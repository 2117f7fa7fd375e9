"""pdv profile-kernels: profile a draft and a verify, kernel by kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engines.errors import require_whole
from engines.storage.locks import locked
from experiments.bench.settings import LARGE
from experiments.checks.hardware import check_gpu
from experiments.commands.arguments import DeviceOption, parse_numbers
from experiments.program.outputs import check_table, save_table
from experiments.program.progress import bar
from experiments.runner.preflight import check_live


def profile_kernels(
    pair: Annotated[str, typer.Option(help="Pair, as for `pdv bench`.")] = LARGE.pair,
    device: DeviceOption = "cuda",
    batches: Annotated[str, typer.Option(help="Batch sizes of draft and verify.")] = "1,8",
    context: Annotated[int, typer.Option(help="Tokens per request before the drafts.")] = 400,
    draft_length: Annotated[int, typer.Option(help="Draft length k.")] = 4,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the table, kernel_profile.csv.")] = Path(
        "results/checks/kernel_profile"
    ),
) -> None:
    """Profile a draft and a verify, kernel by kernel (GPU only).

    Kernels overlap. `advance_us` is the time by which a kernel delays the end of its stage. The rest is `idle`.

    Example: pdv profile-kernels --device cuda --batches 1,8
    """
    counts, table = parse_numbers("batches", batches), out / "kernel_profile.csv"
    require_whole("context", context, 2)
    require_whole("draft_length", draft_length, 1)
    check_table("out", table, ("kernel", "advance_us"))
    check_gpu(device)
    check_live(device, pair)

    from experiments.checks.kernel_profile import check, profile_pair, report

    check(pair, counts, context, draft_length, device)
    with locked(out):
        with bar("profiling") as progress:
            rows = profile_pair(pair, counts, context, draft_length, device, progress)
        save_table(rows, table)
    print(report(rows))
