"""Options that several commands share, and the workload and architecture that they describe.

None means not given, so that an option which does not apply can be refused; what then holds is resolved here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from calibrate.profile import Profile
from engines.errors import MOST_WHOLE, InputError, require_at_least, require_positive
from engines.policy.architecture import MOST_SLOTS, Architecture, load_architecture
from engines.policy.changes import changed
from engines.record.run import Run
from engines.storage.files import holds
from engines.texts import whole_in
from engines.workload.lengths import parse_lengths
from engines.workload.workload import PROCESSES, Workload, make_workload, with_sampling
from experiments.program.progress import bar
from experiments.runner.cells import load_runs
from experiments.runner.config import read_rows
from experiments.runner.folder import SETTINGS, load_experiment
from experiments.runner.predictions import predictions

LAYOUT, LOAD = "Architecture", "Workload"
DEFAULT_ARCHITECTURE, DEFAULT_CLIENTS, DEFAULT_REQUESTS, DEFAULT_TOKENS = "pdv", 4, 32, "64"
AUTO = "auto"  # as many slots as fit the device
ARRIVALS, LENGTHS = ("process", "cv"), ("prompt_tokens", "output_tokens")

DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
PairOption = Annotated[
    str | None,
    typer.Option(
        help="`embedded`, a folder with target/ and draft/ in it, or a permutation pair such as "
        "permutation:llama2-7b+tinyllama-1.1b:alpha=0.8 \\[default: embedded on a CPU, that one on a GPU]."
    ),
]
ArchitectureOption = Annotated[
    str | None,
    typer.Option(
        "--architecture", "-a", help="baseline, pd, pdv, or a .toml file that describes one \\[default: pdv].",
        rich_help_panel=LAYOUT,
    ),
]  # fmt: skip
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
        help="Places in the key-value pool (requests). Live, where none are named: as many as fit the device and the "
        "load can use, 1024 at most; auto asks for that too.",
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
    str | None,
    typer.Option(
        help="Arrivals of the open loop: poisson, gamma or fixed \\[default: poisson].", rich_help_panel=LOAD
    ),
]
CvOption = Annotated[
    float | None,
    typer.Option(
        help="Coefficient of variation of gamma arrivals, 0.001 to 100 \\[default: 1].", rich_help_panel=LOAD
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option(
        "--trace", help="Arrivals and lengths from a trace (.csv or .jsonl, plain or gzip).", rich_help_panel=LOAD
    ),
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
    str | None,
    typer.Option(help="Prompt length in tokens: 64, 16-96 or 64~0.5[16-256] \\[default: 64].", rich_help_panel=LOAD),
]
OutputOption = Annotated[
    str | None,
    typer.Option(help="Output length in tokens, written the same way \\[default: 64].", rich_help_panel=LOAD),
]
TemperatureOption = Annotated[
    float | None, typer.Option(help="0 is greedy; above 0 samples \\[default: 0].", rich_help_panel=LOAD)
]
SeedOption = Annotated[
    int | None,
    typer.Option(help="Same seed, same workload and simulated durations \\[default: 0].", rich_help_panel=LOAD),
]
LiveArgument = Annotated[
    Path, typer.Argument(help="A live run's folder, a folder of them (repeats included), or an experiment's folder.")
]
SimulatedArgument = Annotated[
    Path | None, typer.Argument(help="A simulated run's folder, or a folder of them; none for an experiment.")
]
OnlyOption = Annotated[
    str | None, typer.Option(help="Take only the cells of the experiment whose names match, such as 'pdv-c*'.")
]
WithoutOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Switch off a part of the model, to see what it is worth: contention, host or padding. May be repeated.",
        rich_help_panel="Prediction",
    ),
]


@dataclasses.dataclass(frozen=True)
class Load:
    """The options of the workload; None where one was not given."""

    concurrency: int | None = None
    rate: float | None = None
    process: str | None = None
    cv: float | None = None
    trace: Path | None = None
    max_prompt: int | None = None
    max_output: int | None = None
    requests: int | None = None
    prompt_tokens: str | None = None
    output_tokens: str | None = None
    temperature: float | None = None
    seed: int | None = None

    def refuse(self, names: Iterable[str], remedy: str) -> None:
        """Raises InputError for the first of these options that was given."""
        for name in names:
            value = getattr(self, name)
            if value is not None:
                raise InputError(name, str(value) if isinstance(value, Path) else value, remedy)


def chosen_architecture(
    base: str | Architecture | None,
    draft_length: str | None,
    batch_limit: str | None,
    workers: int | None,
    slots: str | None,
    permits: int | None,
    hybrid: int | None,
) -> Architecture:
    """The architecture that the options describe, by its name or as they change a given one. Raises InputError."""
    if not isinstance(base, Architecture):
        base = load_architecture(DEFAULT_ARCHITECTURE if base is None else base)
    return changed(
        base,
        draft_length=draft_length,
        batch_limit=batch_limit,
        workers=workers,
        slots=parse_slots(slots),
        permits=permits,
        hybrid=hybrid,
    )


def chosen_workload(load: Load) -> Workload:
    """The workload that the options describe; without any load, a closed loop of 4 clients. Raises InputError, also
    for options that the load has no use for."""
    given = {"concurrency": load.concurrency, "rate": load.rate, "trace": load.trace}
    loads = {name: str(value) for name, value in given.items() if value is not None}
    if len(loads) > 1:
        raise InputError(", ".join(loads), ", ".join(loads.values()), "give one of them, since each is a load")
    _check(load)
    if load.trace is not None:
        load.refuse(ARRIVALS, "a --trace has arrivals of its own; leave one of the two out")
        load.refuse(LENGTHS, "a --trace has lengths of its own, which --max-prompt and --max-output cut")
        trace = read_rows(load.trace, load.requests, load.max_prompt, load.max_output)
        return with_sampling(trace, load.temperature or 0.0, load.seed or 0)
    load.refuse(("max_prompt", "max_output"), "only a --trace is cut; choose --prompt-tokens and --output-tokens")
    if load.rate is None:
        load.refuse(ARRIVALS, "a closed loop has no arrivals to choose; give a --rate, or leave it out")
    return make_workload(
        load.requests or DEFAULT_REQUESTS,
        parse_lengths("prompt_tokens", load.prompt_tokens or DEFAULT_TOKENS),
        parse_lengths("output_tokens", load.output_tokens or DEFAULT_TOKENS),
        concurrency=(load.concurrency or DEFAULT_CLIENTS) if load.rate is None else None,
        rate=load.rate,
        process=load.process,
        cv=load.cv,
        seed=load.seed or 0,
        temperature=load.temperature or 0.0,
    )


def parse_names(text: str) -> list[str]:
    """ "pd,pdv": the names, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def one_device(text: str) -> list[str]:
    """ "pd,pdv": architectures that a live engine can lay out. Raises InputError."""
    names = parse_names(text)
    for name in names:
        if len(load_architecture(name).devices) > 1:
            raise InputError("architectures", name, "its lanes are on several devices; a live engine uses one")
    return names


def both_sides(
    live: Path, simulated: Path | None, profile: Path | None, only: str | None
) -> tuple[list[Run], list[Run], Profile | None]:
    """The live runs, the simulated ones and the profile, of two folders or of an experiment. Raises InputError."""
    if simulated is None:
        return load_experiment(live, profile, only)
    if only is not None:
        raise InputError("only", only, "it chooses cells of an experiment; leave it out, or give that folder alone")
    runs = load_runs("live", live), load_runs("simulated", simulated)
    return *runs, Profile.load(profile) if profile is not None else None


def predicted_sides(
    live: Path, profile: Path | None, only: str | None, without: Sequence[str] = ()
) -> tuple[list[Run], list[Run], Profile]:
    """The live runs of a folder or of an experiment, predictions of them made now, and their profile. Raises
    InputError."""
    lives, known = _live_side(live, profile, only)
    with bar("predicting") as progress:
        return lives, predictions(lives, known, without, progress), known


def _live_side(live: Path, profile: Path | None, only: str | None) -> tuple[list[Run], Profile]:
    """The live runs and the profile, of a folder or of an experiment. Raises InputError."""
    if holds(live, SETTINGS):
        lives, _, found = load_experiment(live, profile, only, simulated=False)
        return lives, found
    if profile is None:
        raise InputError("profile", None, "predictions need one; give --profile, or the folder of an experiment")
    if only is not None:
        raise InputError("only", only, "it chooses cells of an experiment; leave it out, or give that folder alone")
    return load_runs("live", live), Profile.load(profile)


def parse_numbers(field: str, text: str) -> list[int]:
    """ "1,2,4": whole numbers of at least 1, each once, in order of size. Raises InputError."""
    numbers = {whole_in(item.strip()) or 0 for item in text.split(",")}
    if 0 in numbers:
        raise InputError(field, text, "list whole numbers of at least 1, separated by commas")
    return sorted(numbers)


def parse_slots(text: str | None) -> int | None:
    """ "48": that many slots; None stays None. Raises InputError, also for "auto", which live runs see to."""
    if text == AUTO:
        raise InputError("slots", text, "a simulation has no device whose memory could be filled; give a number")
    slots = None if text is None else whole_in(text)
    if text is not None and slots is None:
        raise InputError("slots", text, f"use a whole number from 1 to {MOST_SLOTS}, or, for a live run, auto")
    return slots


def check_seed(seed: int | None) -> None:
    """Raises InputError unless the seed is left out or one that all generators take."""
    if seed is not None:
        require_at_least("seed", seed, 0)
    if seed is not None and seed > MOST_WHOLE:
        raise InputError("seed", seed, f"use {MOST_WHOLE} at most")


def _check(load: Load) -> None:
    """Raises InputError for the first value that means nothing, whatever the load."""
    least = {"max_prompt": 1, "max_output": 1, "requests": 1, "concurrency": 1, "temperature": 0}
    for name, value in dataclasses.asdict(load).items():
        if value is not None and name in least:
            require_at_least(name, value, least[name])
        elif value is not None and name in ("rate", "cv"):
            require_positive(name, value)
    check_seed(load.seed)
    if load.process is not None and load.process not in PROCESSES:
        raise InputError("process", load.process, f"use {', '.join(PROCESSES)}")
    for name in LENGTHS:
        text = getattr(load, name)
        if text is not None:
            parse_lengths(name, text)
