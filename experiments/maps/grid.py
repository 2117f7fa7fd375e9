"""Maps: which option serves a load best, over two axes, and whether seeds and calibration leave it open.

Every cell has several options, grouped into sides. Replicate r simulates all options of all cells with seed r and
with calibration r of the bootstrap, so options meet the same arrivals, acceptance and costs (common random numbers).
A winner that does not win in nearly every replicate is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from joblib import Parallel, delayed

from calibrate.contention import NoContention
from calibrate.profile import Profile
from engines.policy.architecture import Architecture, Segment, Stage
from engines.policy.segment_shape import SegmentShape
from engines.workload.workload import FixedLength, Workload, make_workload
from experiments.maps.bootstrap import resampled
from experiments.maps.draft_cost import with_draft_cost
from experiments.program.progress import Report
from sim.acceptance import Independent
from sim.cost_protocols import Costs
from sim.costs import CostModel
from sim.engine import summarise

METRICS = ("steady_throughput_tokens_per_s", "ttft_s.p95", "latency_s.p95")
THROUGHPUT, TTFT_P95, LATENCY_P95 = METRICS
AGREEMENT = 0.95
"""A winner is open if it wins in a smaller share of the replicates."""


@dataclass(frozen=True)
class Option:
    """One way to serve a load. side: what it belongs to; a side is as good as its best option.

    replicas: engines, each with devices of its own, that share the clients equally.
    """

    side: str
    name: str
    architecture: Architecture
    replicas: int = 1


@dataclass(frozen=True)
class Cell:
    """A load and the options for it. x, y: its place.

    draft_cost: factor of everything that the draft model runs. contention: whether segments slow one another.
    """

    x: float
    y: float
    options: tuple[Option, ...]
    clients: int
    alpha: float = 0.8
    prompt_tokens: int = 128
    output_tokens: int = 128
    requests_per_client: int = 5
    draft_cost: float = 1.0
    contention: bool = True

    def check(self, costs: Costs) -> None:
        """Raise InputError if the costs cannot be extrapolated to what the cell needs."""
        for option in self.options:
            k = option.architecture.draft_length.maximum
            costs.cost(SegmentShape.verify(self.clients, k, self.prompt_tokens), None)
            if k:
                costs.cost(SegmentShape.draft(self.clients, k, self.prompt_tokens), None)
            lane, step = option.architecture.lane_for(Stage.PREFILL)
            for prompts in {1, min(lane.steps[step], self.clients)}:
                costs.cost(SegmentShape.prefill(Segment.PREFILL_TARGET, prompts, prompts * self.prompt_tokens), None)

    def workload(self, seed: int, replicas: int = 1) -> Workload:
        """Return the load of one of `replicas` engines: a closed loop of its share of the clients."""
        clients = max(1, self.clients // replicas)
        lengths = FixedLength(self.prompt_tokens), FixedLength(self.output_tokens)
        return make_workload(max(24, self.requests_per_client * clients), *lengths, concurrency=clients, seed=seed)


def simulated(
    cells: Sequence[Cell], profile: Profile, replicates: int, jobs: int = -1, progress: Report | None = None
) -> pd.DataFrame:
    """Return one row per cell (by its number), option and replicate, with METRICS.

    jobs: processes, one per core by default. Raises InputError, before any work for costs that the profile does not
    have.
    """
    measured = CostModel(profile, extrapolate=True)
    for cell in cells:
        cell.check(measured)
    work = Parallel(n_jobs=jobs, return_as="generator_unordered")
    tasks = (delayed(_replicate)(cells, profile, replicate) for replicate in range(replicates))
    parts = []
    for done, part in enumerate(work(tasks), 1):
        parts.append(part)
        if progress is not None:
            progress(done, replicates)
    return pd.concat(parts).sort_values(["cell", "option", "replicate"], ignore_index=True)


def _replicate(cells: Sequence[Cell], profile: Profile, replicate: int) -> pd.DataFrame:
    """Simulate all cells with one seed and one calibration. The first replicate has the measured one."""
    drawn = resampled(profile, replicate) if replicate else profile
    made = {True: CostModel(drawn, extrapolate=True), False: CostModel(drawn, True, NoContention())}
    rows = []
    for number, cell in enumerate(cells):
        costs = with_draft_cost(made[cell.contention], cell.draft_cost)
        for place, option in enumerate(cell.options):
            found = _metrics(cell, option, costs, replicate)
            rows.append({"cell": number, "option": place, "replicate": replicate, **found})
    return pd.DataFrame(rows)


def _metrics(cell: Cell, option: Option, costs: Costs, seed: int) -> dict[str, float]:
    found = summarise(
        option.architecture, cell.workload(seed, option.replicas), costs, Independent(cell.alpha), seed=seed
    )
    return {name: found[name] * (option.replicas if name == THROUGHPUT else 1) for name in METRICS}


def verdicts(
    cells: Sequence[Cell], rows: pd.DataFrame, reference: str, metric: str = THROUGHPUT, rival: str | None = None,
    sides: Mapping[str, str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one row per cell: what wins, by how much, and whether that is open.

    sides: other sides for the options of each side; those that are not there do not take part.

    winner: the side whose best option (by its mean over replicates) is best; option: that option. agreement: share of
    the replicates in which it beats the best option of every other side. rival: that side, by default the best other
    than `reference`. reference_value: the metric of the reference's best option. gain: rival over reference (for
    times, reference over rival), so that above 1 is better; gain_low, gain_high: its smallest and largest value over
    replicates; gain_agreement: share of the replicates that lie on one side of 1. open, gain_open: whether the
    agreement is below AGREEMENT, as it is if both are always equal.
    """
    found = []
    for number, values in rows.groupby("cell"):
        cell = cells[int(str(number))]
        table = values.pivot(index="replicate", columns="option", values=metric)
        better = table if metric == THROUGHPUT else 1 / table
        means = better.mean()
        best: dict[str, int] = {}
        for place, option in enumerate(cell.options):
            side = option.side if sides is None else sides.get(option.side)
            if side is not None and (side not in best or means[place] > means[best[side]]):
                best[side] = place
        order = sorted(best, key=lambda side: -means[best[side]])
        winner = order[0]
        against = rival or next(side for side in order if side != reference)
        agreement = (better[[best[side] for side in order[1:]]].max(axis=1) < better[best[winner]]).mean()
        gain = better[best[against]] / better[best[reference]]
        same_side = max((gain > 1).mean(), (gain < 1).mean())
        found.append({
            "x": cell.x, "y": cell.y, "winner": winner, "option": cell.options[best[winner]].name,
            metric: table[best[winner]].mean(), "agreement": agreement, "open": agreement < AGREEMENT,
            "rival": against, "rival_option": cell.options[best[against]].name,
            "reference_value": table[best[reference]].mean(), "gain": gain.mean(),
            "gain_low": gain.min(), "gain_high": gain.max(), "gain_agreement": same_side,
            "gain_open": same_side < AGREEMENT,
        })  # fmt: skip
    return pd.DataFrame(found)
