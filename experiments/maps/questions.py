"""The maps: which cells and options answer each question, and how each is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from engines.policy.architecture import PD, PDV, Architecture, Stage, Step
from engines.policy.draft_length import LOAD, FixedDraftLength, LoadAdaptiveDraftLength
from experiments.maps.grid import LATENCY_P95, THROUGHPUT, Cell, Option

SLOTS, PROMPTS = 64, 4  # places for requests, and most prompts of a prefill
LENGTHS = (0, 1, 2, 3, 4, 6, 8)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
FEW_CLIENTS = (4, 8, 16, 32, 64)
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FEW_ALPHAS = (0.3, 0.5, 0.7, 0.9)
DRAFT_COSTS = (0.25, 0.5, 1.0, 2.0, 4.0)
TOKENS = 256  # of prompt and output together
PROMPT_SHARES = (0.125, 0.25, 0.5, 0.75, 0.875)
ALPHA, SHARE = "acceptance (alpha)", f"prompt's share of {TOKENS} tokens"
TWO_PD, FIXED = "two PDs", "fixed"
FCFS, PREFILL_FIRST, PREFILL_LAST = "FCFS", "prefill first", "prefill last"
ORDERS: dict[str, tuple[Stage, ...]] = {
    FCFS: (),
    PREFILL_FIRST: (Stage.PREFILL, Stage.VERIFY, Stage.DRAFT),
    PREFILL_LAST: (Stage.VERIFY, Stage.DRAFT, Stage.PREFILL),
}


class Panel(NamedTuple):
    """A figure of a map. shows: the column that colours the cells, "winner" or "gain"; both are written in them.

    x, y: labels of the axes. reference: the side that gains are relative to. rival: the side that gains are of, by
    default the best other one. sides: see experiments.maps.grid.verdicts. title: what the cells show.
    """

    name: str
    cells: tuple[Cell, ...]
    shows: str
    reference: str
    title: str
    x: str = "clients"
    y: str = ALPHA
    metric: str = THROUGHPUT
    rival: str | None = None
    sides: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Map:
    """A question and its figures. Panels with the same cells share their simulations."""

    name: str
    panels: tuple[Panel, ...]


def speculation() -> Map:
    """Where does speculation pay, and with how long a draft? PD at limits that hold all clients."""
    layout = _pd(SLOTS)
    fixed = [Option(str(k), f"k = {k}", layout.replace(draft_length=FixedDraftLength(k))) for k in LENGTHS]
    following = layout.replace(draft_length=LoadAdaptiveDraftLength(maximum=LENGTHS[-1]))
    options = (*fixed, Option(LOAD, "load-adaptive", following))
    cells = tuple(Cell(n, alpha, options, clients=n, alpha=alpha) for n in CLIENTS for alpha in ALPHAS)
    own = {option.side: option.side for option in fixed}
    two = dict.fromkeys(own, FIXED) | {LOAD: LOAD}
    return Map(
        "speculation",
        (
            Panel("best-k", cells, "winner", "0", "draft length k with the highest throughput", sides=own),
            Panel("gain", cells, "gain", "0", "throughput, best k above 0 / target-only", sides=own),
            Panel("load-adaptive", cells, "gain", FIXED, "throughput, load-adaptive / best fixed k", sides=two),
        ),
    )


def third_lane() -> Map:
    """Where does a third lane pay? PDV over PD, each at its best limits."""
    by_alpha = [(n, alpha) for n in FEW_CLIENTS for alpha in FEW_ALPHAS]
    alone = tuple(Cell(n, a, _lanes(n), clients=n, alpha=a) for n, a in by_alpha)
    costs = tuple(Cell(n, c, _lanes(n), clients=n, draft_cost=c) for n in FEW_CLIENTS for c in DRAFT_COSTS)
    equal = tuple(
        Cell(n, limit, (_option("PD", _pd(limit)), _option("PDV", _pdv(limit))), clients=n)
        for n in FEW_CLIENTS
        for limit in FEW_CLIENTS
    )
    apart = tuple(dataclasses.replace(cell, contention=False) for cell in alone)
    two = tuple(Cell(n, a, _two_devices(n), clients=n, alpha=a) for n, a in by_alpha)

    def panel(
        name: str, cells: tuple[Cell, ...], y: str = ALPHA, where: str = "best limits", reference: str = "PD"
    ) -> Panel:
        return Panel(name, cells, "gain", reference, f"throughput, PDV / {reference}, {where}", y=y)

    return Map(
        "third-lane",
        (
            panel("alpha", alone),
            panel("draft-cost", costs, "draft model's time (measured: 1)"),
            panel("prompt-share", _by_prompt_share(_lanes), SHARE),
            panel("equal-limits", equal, "batch limit", where="equal limits"),
            panel("no-contention", apart, where="no contention"),
            panel("two-devices", two, where="two devices", reference=TWO_PD),
        ),
    )


def priority() -> Map:
    """Where does a priority order pay, over first come, first served? It can only where permits are short."""

    def cells(architecture: Architecture) -> tuple[Cell, ...]:
        options = tuple(
            Option(name, name, architecture.replace(priority=order, verify_first_above=None))
            for name, order in ORDERS.items()
        )
        return _by_prompt_share(lambda clients: options)

    def panel(name: str, title: str, cells: tuple[Cell, ...], **more: Any) -> Panel:
        return Panel(name, cells, "gain", FCFS, title, y=SHARE, **more)

    one, two = (cells(_pdv(SLOTS).replace(permits=permits)) for permits in (1, 2))
    best = "throughput, best order / FCFS"
    return Map(
        "priority",
        (
            panel("pd-one-permit", f"PD, 1 permit: {best}", cells(_pd(SLOTS).replace(permits=1))),
            panel("pdv-one-permit", f"PDV, 1 permit: {best}", one),
            panel("pdv-prefill-last", f"PDV, 1 permit: throughput, {PREFILL_LAST} / FCFS", one, rival=PREFILL_LAST),
            panel("pdv-two-permits", f"PDV, 2 permits: {best}", two),
            panel("pdv-two-permits-p95", "PDV, 2 permits: P95 latency, FCFS / best order", two, metric=LATENCY_P95),
        ),
    )


MAPS: Mapping[str, Callable[[], Map]] = {"speculation": speculation, "third-lane": third_lane, "priority": priority}


def _by_prompt_share(options: Callable[[int], tuple[Option, ...]]) -> tuple[Cell, ...]:
    """Return cells over clients and the prompt's share of TOKENS. options: those for a number of clients."""
    return tuple(
        Cell(n, share, options(n), n, prompt_tokens=int(TOKENS * share), output_tokens=int(TOKENS * (1 - share)))
        for n in FEW_CLIENTS
        for share in PROMPT_SHARES
    )


def _pd(limit: int) -> Architecture:
    return PD.replace(slots=SLOTS).with_batch_limits({Step.PREFILL: PROMPTS, Step.DRAFT_VERIFY: limit})


def _pdv(limit: int) -> Architecture:
    limits = {Step.PREFILL: PROMPTS, Step.DRAFT: limit, Step.VERIFY: limit}
    return PDV.replace(slots=SLOTS).with_batch_limits(limits)


def _option(side: str, architecture: Architecture, also: str = "", replicas: int = 1) -> Option:
    """Return an option that is named after its limits, such as 4-64-64."""
    limits = {step: limit for lane in architecture.lanes for step, limit in lane.steps.items()}
    name = "-".join(str(limits[step]) for step in Step if step in limits)
    return Option(side, name + also, architecture, replicas)


def _lanes(clients: int) -> tuple[Option, ...]:
    """PD and PDV with limits for all clients or for half of them, and PDV whose lanes take turns."""
    turns = _pdv(clients).replace(permits=1, priority=(), verify_first_above=None)
    both = [o for n in (clients, clients // 2) for o in (_option("PD", _pd(n)), _option("PDV", _pdv(n)))]
    return (*both, _option("PDV", turns, ", one permit"))


def _two_devices(clients: int) -> tuple[Option, ...]:
    """PDV with draft on one device and the target's stages on another, and two PDs that share the clients."""
    found = [_option(TWO_PD, _pd(clients // 2), replicas=2)]
    for limit in (clients, clients // 2):
        layout = _pdv(limit).replace(hybrid_at_or_below=0)
        lanes = tuple(dataclasses.replace(lane, device=int(Step.DRAFT not in lane.steps)) for lane in layout.lanes)
        found.append(_option("PDV", layout.replace(lanes=lanes), ", two devices"))
    return tuple(found)
