"""pdv train-pair: train a pair like the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engines.errors import InputError
from engines.storage.locks import locked
from experiments.commands.arguments import DeviceOption, option
from experiments.program.outputs import MOVE, check_output
from experiments.program.progress import bar
from experiments.program.provenance import this_command
from experiments.runner.preflight import check_live

_time, _measuring = option("Seconds per phase"), option("Measuring")


def train_pair(
    device: DeviceOption = "cpu",
    target_seconds: Annotated[float, _time("Train the target on text.")] = 200.0,
    draft_seconds: Annotated[float, _time("Train the draft on text.")] = 30.0,
    pool_seconds: Annotated[float, _time("Generate outputs of the target.")] = 40.0,
    distil_seconds: Annotated[float, _time("Train the draft on these outputs.")] = 60.0,
    batch: Annotated[int, typer.Option(help="Windows of 2048 tokens per training step.")] = 32,
    pool_requests: Annotated[int, typer.Option(help="Outputs generated at a time.")] = 2048,
    requests: Annotated[int, _measuring("Held-out prompts to measure acceptance with.")] = 128,
    prompt_tokens: Annotated[int, _measuring("Tokens per prompt.")] = 128,
    output_tokens: Annotated[int, _measuring("Tokens per output.")] = 128,
    library: Annotated[
        Path | None, typer.Option(help="Folder of Python sources \\[default: the running Python's standard library].")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the pair.")] = Path("pair"),
) -> None:
    """Train a byte-level target and draft on Python's standard library, like the embedded pair.

    Writes target/ and draft/, which `--pair` reads, and training.toml with their quality. The default times are for
    a GPU; a CPU needs hours for the same quality.

    Example: pdv train-pair --device cuda --target-seconds 210 --out pair
    """
    check_output("out", out)
    there = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    if there:
        raise InputError("out", str(out), f"it contains {there[0]}; {MOVE}")
    check_live(device)

    from engines.live.model.pairs import find_device
    from experiments.embedded_pair.train import Training, train_pair

    training = Training(
        target_seconds, draft_seconds, pool_seconds, distil_seconds, batch, pool_requests, requests, prompt_tokens,
        output_tokens, library,
    )  # fmt: skip
    with locked(out), bar("training") as progress:
        said = train_pair(training, out, find_device(device), this_command(), progress.part)
    print(said, end="")
    print(f"pair: {out}")
