"""Options that several commands share, and the workload and architecture that they describe.

An option that is not given is None, so that one without effect can be refused. The defaults are applied here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

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
from experiments.runner.config import built_in, read_rows
from experiments.runner.folder import SETTINGS, load_experiment
from experiments.runner.predict import FROM_PROFILE, AcceptanceChoice
from experiments.runner.predictions import predictions

DEFAULT_ARCHITECTURE, DEFAULT_CLIENTS, DEFAULT_REQUESTS, DEFAULT_TOKENS = "pdv", 4, 32, "64"
AUTO = "auto"  # as many slots as fit
ARRIVALS, LENGTHS = ("process", "cv"), ("prompt_tokens", "output_tokens")


def config_argument(configs: Path) -> Any:
    """Return the argument for a configuration: a file, or the name of one in this folder."""
    return typer.Argument(help=f"TOML file, or a built-in configuration: {', '.join(built_in(configs))}.")


def option(panel: str) -> Callable[..., Any]:
    """Return a function that makes an option in this panel of the help, from its help text and names."""
    return lambda help, *names: typer.Option(*names, help=help, rich_help_panel=panel)


_layout, _load, _models = option("Architecture"), option("Workload"), option("Models")
_PAIRS = (
    "`embedded`, a folder that holds target/ and draft/, or a permutation pair such as "
    "permutation:llama2-7b+tinyllama-1.1b:alpha=0.8"
)

DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
PairOption = Annotated[
    str | None, typer.Option(help=f"{_PAIRS} \\[default: embedded on a CPU, this example on a GPU].")
]
ModelsOption = Annotated[str, _models(f"{_PAIRS}.", "--pair")]
TargetOption = Annotated[str | None, _models("Folder of the target model; needs --draft.")]
DraftOption = Annotated[str | None, _models("Folder of the draft model; needs --target.")]
ArchitectureOption = Annotated[
    str | None, _layout("baseline, pd, pdv, target-only, or a TOML file \\[default: pdv].", "--architecture", "-a")
]
DraftLengthOption = Annotated[
    str | None,
    _layout(
        "Draft length k: 4 (fixed), 0 (no drafts), 2-8 or adaptive (follows acceptance), load or load0-4 (follows "
        "the load)."
    ),
]
BatchLimitOption = Annotated[str | None, _layout("Batch limits in requests, such as draft=12,verify=24.")]
WorkersOption = Annotated[int | None, _layout("Workers per lane. For baseline: requests served at once.")]
SlotsOption = Annotated[
    str | None,
    _layout(
        "Slots in the KV cache pool, one per request. `auto` takes as many as fit in memory and the load can use, "
        "1024 at most. Live runs default to `auto`, unless the TOML file sets slots."
    ),
]
PermitsOption = Annotated[int | None, _layout("Steps that may run on the device at once. With 1, lanes take turns.")]
HybridOption = Annotated[
    int | None, _layout("Run draft and verify as one step at this many active requests or fewer. 0 turns this off.")
]
ConcurrencyOption = Annotated[int | None, _load("Closed loop: number of clients.", "--concurrency", "-c")]
RateOption = Annotated[float | None, _load("Open loop: requests per second.", "--rate", "-r")]
ProcessOption = Annotated[
    str | None, _load("Arrival process of an open loop: poisson, gamma or fixed \\[default: poisson].")
]
CvOption = Annotated[
    float | None, _load("Coefficient of variation of gamma interarrival times, 0.001 to 100 \\[default: 1].")
]
TraceOption = Annotated[
    Path | None, _load("Read arrivals and lengths from a trace: .csv or .jsonl, plain or gzip.", "--trace")
]
MaxPromptOption = Annotated[int | None, _load("Cap the prompts of a trace at this many tokens.")]
MaxOutputOption = Annotated[int | None, _load("Cap the outputs of a trace at this many tokens.")]
RequestsOption = Annotated[
    int | None, _load("Number of requests \\[default: 32, or all of a trace].", "--requests", "-n")
]
PromptOption = Annotated[
    str | None,
    _load("Prompt length in tokens: 64 (fixed), 16-96 (uniform) or 64~0.5[16-256] (lognormal) \\[default: 64]."),
]
OutputOption = Annotated[str | None, _load("Output length in tokens, in the same format \\[default: 64].")]
TemperatureOption = Annotated[float | None, _load("Sampling temperature; 0 is greedy \\[default: 0].")]
SeedOption = Annotated[int | None, _load("Seed of the workload and of simulated durations \\[default: 0].")]
LiveArgument = Annotated[
    Path, typer.Argument(help="Folder of a live run, of several runs (repeats included), or of an experiment.")
]
SimulatedArgument = Annotated[
    Path | None, typer.Argument(help="Folder of a simulated run or of several. Omit it for an experiment.")
]
OnlyOption = Annotated[
    str | None, typer.Option(help="Use only the cells of the experiment whose names match, such as 'pdv-c*'.")
]
WithoutOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave out a part of the model, to see its effect: contention, contention-differences (between the law "
        "and the measured rates), host, host-growth (with the batch and what runs beside it) or padding. Repeatable.",
        rich_help_panel="Prediction",
    ),
]


@dataclasses.dataclass(frozen=True)
class Load:
    """The options of the workload. None means not given."""

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
        """Raise InputError for the first of these options that is given."""
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
    """Return the architecture that the options describe. Raises InputError.

    base: a name, an architecture, or None for the default.
    """
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
    """Return the workload that the options describe; by default, a closed loop of 4 clients.

    Raises InputError, also for options that do not apply to the load.
    """
    given = {"concurrency": load.concurrency, "rate": load.rate, "trace": load.trace}
    loads = {name: str(value) for name, value in given.items() if value is not None}
    if len(loads) > 1:
        raise InputError(", ".join(loads), ", ".join(loads.values()), "give only one of them")
    _check(load)
    if load.trace is not None:
        load.refuse(ARRIVALS, "a --trace has its own arrivals; leave out one of the two")
        load.refuse(LENGTHS, "a --trace has its own lengths; --max-prompt and --max-output cap them")
        trace = read_rows(load.trace, load.requests, load.max_prompt, load.max_output)
        return with_sampling(trace, load.temperature or 0.0, load.seed or 0)
    load.refuse(
        ("max_prompt", "max_output"), "it caps the lengths of a --trace; use --prompt-tokens and --output-tokens"
    )
    if load.rate is None:
        load.refuse(ARRIVALS, "it applies to an open loop only; give a --rate, or leave it out")
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
    """Split a text such as "pd,pdv" into its names, without duplicates."""
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def one_device(text: str) -> list[str]:
    """Like parse_names, for architectures. Raises InputError for lanes on several devices."""
    names = parse_names(text)
    for name in names:
        if len(load_architecture(name).devices) > 1:
            raise InputError("architectures", name, "its lanes are on several devices, but the live engine uses one")
    return names


def both_sides(
    live: Path, simulated: Path | None, profile: Path | None, only: str | None
) -> tuple[list[Run], list[Run], Profile | None]:
    """Return live runs, simulated runs and the profile, of two folders or of an experiment. Raises InputError."""
    if simulated is None:
        return load_experiment(live, profile, only)
    if only is not None:
        raise InputError(
            "only", only, "it selects cells of an experiment; leave it out, or give only the folder of an experiment"
        )
    runs = load_runs("live", live), load_runs("simulated", simulated)
    return *runs, Profile.load(profile) if profile is not None else None


def predicted_sides(
    live: Path,
    profile: Path | None,
    only: str | None,
    without: Sequence[str] = (),
    acceptance: AcceptanceChoice = FROM_PROFILE,
) -> tuple[list[Run], list[Run], Profile]:
    """The live runs of a folder or of an experiment, predictions of them made now, and their profile. Raises
    InputError."""
    lives, known = _live_side(live, profile, only)
    with bar("predicting") as progress:
        return lives, predictions(lives, known, without, progress, acceptance), known


def _live_side(live: Path, profile: Path | None, only: str | None) -> tuple[list[Run], Profile]:
    """The live runs and the profile, of a folder or of an experiment. Raises InputError."""
    if holds(live, SETTINGS):
        lives, _, found = load_experiment(live, profile, only, simulated=False)
        return lives, found
    if profile is None:
        raise InputError("profile", None, "predictions need one; give --profile, or the folder of an experiment")
    if only is not None:
        raise InputError("only", only, "it selects cells of an experiment; leave it out, or give one")
    return load_runs("live", live), Profile.load(profile)


def parse_numbers(field: str, text: str, least: int = 1) -> list[int]:
    """Parse a list such as "1,2,4": whole numbers of at least `least`. Returns them sorted, without duplicates.

    Raises InputError.
    """
    numbers = [whole_in(item.strip()) for item in text.split(",")]
    found = {number for number in numbers if number is not None and number >= least}
    if None in numbers or len(found) < len(set(numbers)):
        raise InputError(field, text, f"give whole numbers of at least {least}, separated by commas")
    return sorted(found)


def parse_slots(text: str | None) -> int | None:
    """Parse a number of slots. None stays None. Raises InputError, also for "auto", which only live runs accept."""
    if text == AUTO:
        raise InputError("slots", text, "a simulation has no device memory to fill; give a number")
    slots = None if text is None else whole_in(text)
    if text is not None and slots is None:
        raise InputError("slots", text, f"use a whole number from 1 to {MOST_SLOTS}, or auto in a live run")
    return slots


def check_seed(seed: int | None) -> None:
    """Raise InputError for a seed that is out of range."""
    if seed is not None:
        require_at_least("seed", seed, 0)
    if seed is not None and seed > MOST_WHOLE:
        raise InputError("seed", seed, f"use at most {MOST_WHOLE}")


def _check(load: Load) -> None:
    """Raise InputError for the first value that is out of range."""
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
