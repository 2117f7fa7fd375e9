"""Where the error of a simulation comes from: the mean latency, cause by cause.

The live run tells what each cause really cost (experiments.compare.measured). The simulation is then repeated with
one cause after another as measured, until all are, and once more in the reverse order. The part of a cause is the
mean of the two changes of the mean latency. What remains between the last of these runs and the live run is the part
of different batches. So the parts add up to the error.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import Architecture, Segment
from engines.policy.captured_sizes import CapturePlan
from engines.record.run import Run
from engines.storage.files import replaced
from experiments.compare.comparable import REPLAY, check_profile, mode_of
from experiments.compare.exchange import BATCHES, CONTENTION, HOST, PADDING, SOLO, ExchangedCosts, Player
from experiments.compare.identity import replayed_runs
from experiments.compare.measured import Measured, captured_by, measured, plans_of
from experiments.compare.parting import Parting, parting
from experiments.program.progress import Report
from experiments.runner.cells import CELL_COLUMNS, cell_of
from experiments.runner.replay import recorded_workload
from experiments.runner.without import CostsWithout
from sim.acceptance import AcceptanceSource, PerPosition, Tapes
from sim.cost_protocols import Costs
from sim.costs import CostModel
from sim.engine import simulate

ORDER = (SOLO, PADDING, HOST, CONTENTION)
EXACT = 1e-4  # factors that differ from 1 by less are not worth a simulation


@dataclass(frozen=True)
class Explanation:
    """The mean latency error of one simulated run.

    live_s, simulated_s: mean latencies. parts: the columns cause, segment ("" for the host and for different batches)
    and error_s; they add up to simulated_s - live_s. parting: where the batches part first, None if nowhere. same:
    share of the live batches that the simulation had too.
    """

    live: Run
    simulated: Run
    live_s: float
    simulated_s: float
    parts: pd.DataFrame
    parting: Parting | None
    same: float

    @property
    def error(self) -> float:
        return (self.simulated_s - self.live_s) / self.live_s

    def share(self, cause: str, segment: str | None = None) -> float:
        """Return the part of a cause, over all segments or for one, as a fraction of the live mean latency."""
        own = self.parts[self.parts["cause"] == cause]
        own = own if segment is None else own[own["segment"] == segment]
        return float(own["error_s"].sum()) / self.live_s


def explain(live: Run, simulated: Run, profile: Profile) -> Explanation:
    """Explain the error of a simulated run.

    profile: the one that it was made from.

    Raises InputError for another profile, for runs whose costs the profile does not know even when extrapolated, and
    for a run of which no request finished.
    """
    check_profile(profile, [live])
    used = simulated.info.get("costs", {})
    if used.get("date") != profile.info["date"]:
        remedy = f"{simulated.name} was simulated from a profile of {used.get('date')}; give that one"
        raise InputError("profile date", profile.info["date"], remedy)
    full = CostModel(profile, extrapolate=True)
    off = set(used.get("without", ())) | ({"contention"} if used.get("contention") == "none" else set())
    modelled: Costs = CostsWithout(full, off) if off else full
    found = measured(live, profile, full)
    sizes = captured_by(live, profile)
    plans = list(plans_of(live, sizes).values()) if modelled.captured != sizes else []
    players = _players(found, bool(plans))
    simulation = _Simulation(simulated, live, modelled, found, plans)
    live_s, simulated_s = _mean_latency_s(live), _mean_latency_s(simulated)
    forward, backward = simulation.changes(players), simulation.changes(players[::-1])
    rows = [(*player, -(forward[player] + backward[player]) / 2) for player in players]
    rows.append((BATCHES, "", simulated_s - live_s - sum(row[2] for row in rows)))
    first, same = parting(live, simulated)
    parts = pd.DataFrame(rows, columns=["cause", "segment", "error_s"])
    return Explanation(live, simulated, live_s, simulated_s, parts, first, same)


def _players(found: Measured, pads_otherwise: bool) -> list[Player]:
    """Return what to exchange, without what is as modelled anyway."""
    solo = {segment for (segment, _), factor in found.solo.items() if abs(factor - 1) > EXACT}
    present = {segment for segment, _ in found.solo}
    contended = {segment for segment, _ in found.slowdowns}
    wanted = {SOLO: solo, PADDING: present if pads_otherwise else set(), CONTENTION: contended}
    return [
        player
        for cause in ORDER
        for player in ([Player(HOST)] if cause == HOST else [Player(cause, s) for s in Segment if s in wanted[cause]])
    ]


class _Simulation:
    """Repeats a simulation with other costs."""

    def __init__(
        self, simulated: Run, live: Run, modelled: Costs, found: Measured, plans: Sequence[CapturePlan]
    ) -> None:
        self._run, self._live, self._modelled, self._found, self._plans = simulated, live, modelled, found, plans
        self._architecture = Architecture.from_dict(simulated.info["architecture"])
        self._workload = recorded_workload(simulated)
        self._acceptance = _acceptance(simulated)
        self._known: dict[frozenset[Player], float] = {}

    def changes(self, players: Sequence[Player]) -> dict[Player, float]:
        """Return how the mean latency changes as each of the players, in this order, becomes as measured."""
        means = [self._mean_s(frozenset(players[:count])) for count in range(len(players) + 1)]
        return {player: b - a for player, (a, b) in zip(players, itertools.pairwise(means), strict=True)}

    def _mean_s(self, measured_of: frozenset[Player]) -> float:
        if measured_of not in self._known:
            costs = ExchangedCosts(self._modelled, self._found, measured_of, self._plans)
            info = self._run.info
            run = simulate(
                self._architecture, self._workload, costs, self._acceptance, seed=info.get("seed", 0),
                jitter=info.get("jitter", True), max_context=info.get("max_context"),
                prefill_tokens=self._live.info.get("prefill_tokens"),
            )  # fmt: skip
            self._known[measured_of] = _mean_latency_s(run)
        return self._known[measured_of]


def _acceptance(run: Run) -> AcceptanceSource:
    """Return the acceptance that a simulated run had."""
    described = run.info.get("acceptance", {})
    if described.get("source") == "per position":
        return PerPosition(tuple(described["rates"]))
    return Tapes.recorded_by(run)


def _mean_latency_s(run: Run) -> float:
    done = run.finished
    if done.empty:
        raise InputError("explain", run.name, "no request finished in this run; leave it out")
    return float((done["finish_s"] - done["arrival_s"]).mean())


def explanations(
    lives: Sequence[Run], simulations: Sequence[Run], profile: Profile, progress: Report | None = None
) -> list[Explanation]:
    """Explain each live run by its replay or, for those without one, by the simulation of its cell and seed.

    progress: told how many runs are done, and how many there are. Raises InputError as `explain` does.
    """
    replays = [run for run in simulations if mode_of(run) == REPLAY]
    replay_of = {id(live): replay for live, replay in zip(replayed_runs(replays, lives), replays, strict=True)}
    others: dict[tuple[object, ...], Run] = {}
    for run in simulations:
        if mode_of(run) != REPLAY:
            others.setdefault((cell_of(run), run.info.get("workload", {}).get("seed")), run)
    pairs = []
    for live in lives:
        key = cell_of(live), live.info.get("workload", {}).get("seed")
        pair = replay_of.get(id(live)) or others.get(key)
        if pair is not None:
            pairs.append((live, pair))
    if not pairs:
        remedy = "no simulated run has the cell and seed of a live run; give replays, or add --predict"
        raise InputError("explain", f"{len(lives)} live, {len(simulations)} simulated", remedy)
    found = []
    for live, simulated in pairs:
        found.append(explain(live, simulated, profile))
        if progress is not None:
            progress(len(found), len(pairs))
    return found


def explained_path(path: Path) -> Path:
    """Return the path of the explanations, next to the metrics."""
    return path.with_name(f"{path.stem}_explained.csv")


def save_explanations(found: Sequence[Explanation], path: Path) -> Path:
    """Write one row per run, cause and segment: error_s (seconds) and share (of the live mean latency)."""
    tables = [
        one.parts.assign(**cell_of(one.live)._asdict(), run=one.live.name, share=one.parts["error_s"] / one.live_s)
        for one in found
    ]
    with replaced(path) as beside:
        table = pd.concat(tables)[[*CELL_COLUMNS, "run", "cause", "segment", "error_s", "share"]]
        table.to_csv(beside, index=False, float_format="%.6g")
    return path
