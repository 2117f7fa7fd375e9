"""Simulated runs for experiments: parsing of acceptance, predictions and replays."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import calibrate
import engines
import sim
from calibrate.contention import NoContention
from calibrate.profile import COLUMNS, Profile
from engines.errors import InputError, require_whole
from engines.pairs.permutation import PREFIX, expected_tape, parse_pair
from engines.pairs.prompts import last_tokens
from engines.policy.architecture import Architecture
from engines.policy.context import context_of
from engines.policy.request import MOST_TOKENS
from engines.record.masks import SUFFIX as MASKS
from engines.record.masks import read_masks
from engines.record.run import Run
from engines.record.totals import Totals
from engines.workload.workload import Workload
from experiments.compare.comparable import check_kind
from experiments.compare.identity import identity
from experiments.program.progress import Report
from experiments.runner.beyond import beyond_of_fleet, requests_beyond
from experiments.runner.cells import check_room, fingerprint
from experiments.runner.replay import planned_workload, recorded_workload
from experiments.runner.without import CostsWithout
from sim import acceptance as sources
from sim.acceptance_fits import from_profile
from sim.conditions import Conditions
from sim.cost_protocols import MeasuredCosts
from sim.costs import CostModel
from sim.engine import simulate, totalled
from sim.fleet import simulate_fleet
from sim.routers import ALONE, Fleet

FORMS = (
    "profile, tape, 0.8 (each draft), 0.8,0.6,0.5 (rates by position), 0.7±0.1 (spread over requests), "
    "length=3.36,k=4 (mean acceptance length, bonus token included) or masks.jsonl (recorded masks)"
)
_NUMBER = r"\d*\.?\d+"
_LENGTH = re.compile(rf"length\s*=\s*({_NUMBER})\s*,\s*k\s*=\s*(\d{{1,9}})")
_BRACKETS = re.compile(r"\[(.*)\]")
_SPREAD = re.compile(rf"({_NUMBER})\s*(?:±|\+-)\s*({_NUMBER})")


class AcceptanceChoice(NamedTuple):
    """The source of acceptance in a simulation.

    kind: "profile", "tape", "closed form" (of the profile's permutation pair), "masks" (of a file),
    "independent" (values: alpha), "positions" (values: the unconditional rate of each position) or "spread" (values:
    mean and standard deviation of alpha over requests). masks: path of the file.
    """

    kind: str
    values: tuple[float, ...] = ()
    masks: str = ""

    def describe(self) -> list[Any]:
        """Return everything that determines the acceptance, as plain values: of masks, a digest of them."""
        if not self.masks:
            return [self.kind, list(self.values)]
        found = read_masks(self.masks).items()
        return [self.kind, fingerprint({str(request): mask.tolist() for request, mask in found})]


FROM_PROFILE = AcceptanceChoice("profile")
CLOSED_FORM = AcceptanceChoice("closed form")


def parse_acceptance(text: str) -> AcceptanceChoice:
    """Parse profile, tape, 0.8, "0.8,0.6,0.5", "0.7±0.1" (also 0.7+-0.1), "length=3.36,k=4" or masks.jsonl.

    Rates by position may have brackets, as in vLLM's synthetic_acceptance_rates. A length becomes the alpha that has
    it (sim.acceptance.alpha_of). A file of masks is read, and checked. Raises InputError.
    """
    if text in ("profile", "tape"):
        return AcceptanceChoice(text)
    if text.endswith(MASKS):
        read_masks(text)
        return AcceptanceChoice("masks", masks=text)
    if match := _LENGTH.fullmatch(text):
        return AcceptanceChoice("independent", (sources.alpha_of(float(match[1]), int(match[2])),))
    values: tuple[float, ...]
    if match := _SPREAD.fullmatch(text):
        kind, values = "spread", (float(match[1]), float(match[2]))
    else:
        listed = match[1] if (match := _BRACKETS.fullmatch(text)) else text
        parts = [part.strip() for part in listed.split(",")]
        if not all(re.fullmatch(_NUMBER, part) for part in parts):
            raise InputError("acceptance", text, f"use {FORMS}")
        kind = "independent" if len(parts) == 1 and listed is text else "positions"
        values = tuple(float(part) for part in parts)
    if any(value > 1 for value in values):
        raise InputError("acceptance", text, "use probabilities from 0 to 1")
    if kind == "positions" and any(b > a for a, b in itertools.pairwise(values)):
        raise InputError("acceptance", text, "rates by position cannot rise: entry i covers the first i + 1 drafts")
    return AcceptanceChoice(kind, values)


@dataclass
class Prediction:
    """The settings of a prediction.

    without: parts of the model that are switched off (experiments.runner.without.PARTS), to see what they are worth.
    max_context: tokens of prompt and output together, by default the limit of the profile's models; more than that
    only with `extrapolate`. The prediction of a live run uses that run's limit.
    """

    profile: Profile
    acceptance: AcceptanceChoice = FROM_PROFILE
    extrapolate: bool = False
    jitter: bool = True
    without: Sequence[str] = ()
    seed: int = 0
    max_context: int | None = None
    _costs: MeasuredCosts | None = field(default=None, init=False, repr=False)

    def costs(self) -> MeasuredCosts:
        """Return the profile's cost model. It is fitted once. Raises InputError for unknown parts in `without`."""
        if self._costs is None:
            contention = NoContention() if "contention" in self.without else None  # not fitted then
            costs = CostModel(self.profile, self.extrapolate, contention)
            self._costs = CostsWithout(costs, self.without) if self.without else costs
        return self._costs

    def share_costs(self, other: Prediction) -> None:
        """Use the fitted costs of a prediction with the same profile and the same parts."""
        self._costs = other.costs()

    def with_seed(self, seed: int) -> Prediction:
        """Return a copy with another seed that shares the fitted costs."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def describe(self) -> dict[str, Any]:
        """Return everything that determines a prediction, as plain values.

        This includes a digest of the profile and one of the program, since another version may decide and draw
        differently.
        """
        profile = self.profile
        tables = {name: getattr(profile, name).to_csv() for name in COLUMNS}
        tapes = {str(request): tape.tolist() for request, tape in profile.tapes.items()}
        return {
            "profile": fingerprint({**tables, "tapes": tapes, "info": profile.info}),
            "program": program(),
            "acceptance": self.acceptance.describe(),
            "extrapolate": self.extrapolate,
            "jitter": self.jitter,
            "without": list(self.without),
            "seed": self.seed,
            "max_context": self.max_context,
        }


@cache
def program() -> str:
    """Return a digest of the code and library versions that determine a simulated run."""
    folders = [Path(package.__path__[0]) for package in (engines, calibrate, sim)]
    sources = {path.relative_to(folder.parent): path for folder in folders for path in sorted(folder.rglob("*.py"))}
    texts = {
        name.as_posix(): path.read_text(encoding="utf-8")
        for name, path in sources.items()
        if "live" not in name.parts
    }
    return fingerprint({**texts, **{name: version(name) for name in ("numpy", "simpy")}})


def replayed(live: Run) -> Workload:
    """Return the workload of a live run's finished requests: its arrivals if it is an open loop, else its clients.

    Raises InputError if no request finished, or for a simulated run.
    """
    check_kind("replay", [live], "live")
    return recorded_workload(live)


def planned(live: Run) -> Workload:
    """Return the workload that a person planning for a live run's load would simulate.

    It is made from the description of the live run's workload. Raises InputError for a simulated run.
    """
    check_kind("blind", [live], "live")
    return planned_workload(live)


def predict(
    architecture: Architecture,
    workload: Workload,
    settings: Prediction,
    *,
    live: Run | None = None,
    fleet: Fleet = ALONE,
    info: dict[str, Any] | None = None,
    progress: Report | None = None,
) -> Run:
    """Simulate the workload. info: added to the info of the record.

    live: the run whose tapes the acceptance "tape" uses (by default, the profile's). If the workload is
    `replayed(live)`, the record names the live run, so that a comparison pairs the two by request. Raises InputError.
    """
    if live is not None:
        check_kind("live", [live], "live")
    asked, source = _asked(architecture, settings, live), _source(settings, workload, live)
    run = simulate(architecture, workload, settings.costs(), source, **asked, fleet=fleet, progress=progress)
    if live is not None and workload.info.get("kind") == "replay":
        run.info |= {"replays": live.name, "replays_id": identity(live)}
    if workload.info.get("blind"):
        run.info["blind"] = True
    if settings.extrapolate:
        run.info["beyond_profile"] |= _requests_beyond(architecture, workload, settings)
    run.info |= info or {}
    return run


def predict_totals(
    architecture: Architecture, workload: Workload, settings: Prediction, fleet: Fleet = ALONE
) -> tuple[Totals, dict[str, int]]:
    """Return the totals of the run that `predict` records, and its counts of segments, without its record.

    Runs with the same seed share what they draw of the acceptance.
    """
    source = _source(settings, workload, None)
    if isinstance(source, sources.Drawn):
        source = sources.remembered(source)
    conditions = Conditions(settings.costs(), source, **_asked(architecture, settings))
    return totalled(architecture, workload, conditions, fleet)


class FleetPrediction(NamedTuple):
    """run: the record, if there is one. metrics: see sim.fleet.simulate_fleet. beyond: what lies beyond the profile.

    beyond is empty unless extrapolation was asked for.
    """

    run: Run | None
    metrics: pd.DataFrame
    beyond: dict[str, int]


def predict_fleet(
    fleet: Fleet,
    architecture: Architecture,
    workload: Workload,
    settings: Prediction,
    *,
    record: bool = True,
    info: dict[str, Any] | None = None,
    progress: Report | None = None,
) -> FleetPrediction:
    """Predict what a fleet does with the workload, with a record or without. info: added to that of the record.

    Raises InputError.
    """
    run, metrics = simulate_fleet(
        fleet, architecture, workload, settings.costs(), _source(settings, workload, None),
        **_asked(architecture, settings), record=record, info=info, progress=progress,
    )  # fmt: skip
    beyond: dict[str, int] = {}
    if settings.extrapolate:
        beyond = beyond_of_fleet(metrics) | _requests_beyond(architecture, workload, settings)
        if run is not None:
            run.info["beyond_profile"] = beyond
    return FleetPrediction(run, metrics, beyond)


def _asked(architecture: Architecture, settings: Prediction, live: Run | None = None) -> dict[str, Any]:
    """Return the arguments of sim.engine.simulate that say how a run is predicted."""
    limits: dict[str, Any] = {"max_context": _context(architecture, settings)}
    if live is not None:
        limits = {name: live.info.get(name) for name in ("max_context", "prefill_tokens")}
    return {"seed": settings.seed, "jitter": settings.jitter, **limits}


def _requests_beyond(architecture: Architecture, workload: Workload, settings: Prediction) -> dict[str, int]:
    positions = context_of(settings.profile.info["max_context"], architecture.draft_length.maximum)
    limit = _context(architecture, settings)
    return requests_beyond(workload.requests, settings.costs(), limit, positions)


def check(architecture: Architecture, workload: Workload, settings: Prediction) -> None:
    """Check that a workload can be predicted.

    Raises InputError if the profile's models do not support the context, if no prompt fits it, or if the profile's
    tapes, when they are used, or the masks are shorter than the outputs.
    """
    context, source = _context(architecture, settings), _source(settings, workload, None)
    check_room(workload, context)
    if isinstance(source, sources.Tapes):
        source.check(workload.requests, context)


def _context(architecture: Architecture, settings: Prediction) -> int:
    """Return the tokens of prompt and output together that a live engine with these models would accept.

    With extrapolation, it may be more than the models support.
    """
    limit = settings.max_context
    if limit is not None and settings.extrapolate:
        require_whole("max_context", limit, 2, MOST_TOKENS)
        return limit
    return context_of(settings.profile.info["max_context"], architecture.draft_length.maximum, limit)


def without_live(profile: Profile) -> AcceptanceChoice:
    """Return the acceptance to use without a live run: a permutation pair's closed form, else the profile's rates."""
    pair = str(profile.info["pair"])
    return CLOSED_FORM if pair.startswith(PREFIX) and parse_pair(pair).closed_form else FROM_PROFILE


def closed_form(pair: str, workload: Workload) -> sources.Tapes:
    """Return the tape of each request, for the prompts that a live run of a permutation pair would have."""
    spec = parse_pair(pair)
    seed = int(workload.info.get("seed", 0))
    last = zip(workload.requests, last_tokens(workload, spec, seed), strict=True)
    return sources.Tapes({r.id: expected_tape(spec, (token,), r.max_tokens) for r, token in last})


def masks_of(chosen: AcceptanceChoice) -> sources.Tapes:
    """Return the recorded masks of a file as tapes. Raises InputError."""
    return sources.Tapes(read_masks(chosen.masks), origin=Path(chosen.masks).name)


def _source(settings: Prediction, workload: Workload, live: Run | None) -> sources.AcceptanceSource:
    kind, values, _ = settings.acceptance
    if kind == "closed form":
        return closed_form(str(settings.profile.info["pair"]), workload)
    if kind == "tape":
        tapes = sources.Tapes(settings.profile.tapes) if live is None else sources.Tapes.recorded_by(live)
        if not tapes.tapes:
            remedy = "the profile has no tapes; use --replay, or another acceptance"
            raise InputError("acceptance", "tape", remedy)
        return tapes
    if kind == "masks":
        return masks_of(settings.acceptance)
    if kind == "independent":
        return sources.Independent(*values)
    if kind == "spread":
        return sources.PerRequestSpread(*values)
    if kind == "positions":
        return sources.PerPosition(values)
    return from_profile(settings.profile)
