"""Measure every stage alone, as the engines run it, against its roofline floor."""

from __future__ import annotations

import pandas as pd

from calibrate.stage_costs import Grid, Progress, measure_stage_costs
from engines.live.device.host import lane_settings
from engines.live.model.pairs import Pair
from engines.live.serving.utilisation import measure_ceilings, pair_counts
from engines.policy.architecture import Segment
from engines.record.roofline import Ceilings, PairCounts, count_work
from experiments.bench.settings import BenchSettings

BUDGET_SHARE = 0.08


def find_ceilings(pair: Pair) -> Ceilings:
    """Measure the ceilings of the device in the pair's data type, with the threads of a lane."""
    with lane_settings(pair.device):
        return measure_ceilings(pair.device, pair.dtype)


def measure_stages(pair: Pair, settings: BenchSettings, ceilings: Ceilings, progress: Progress) -> pd.DataFrame:
    """Return one row per segment and size: the columns of a profile's stage costs, and those of with_floors."""
    lengths = (0, settings.draft_length)  # 0: the target alone
    grid = Grid(settings.batches, lengths, (settings.context,), settings.prompts)
    costs = measure_stage_costs(pair, grid, BUDGET_SHARE * settings.budget_s, progress)
    return with_floors(costs, pair_counts(pair), ceilings)


def with_floors(costs: pd.DataFrame, counts: PairCounts, ceilings: Ceilings) -> pd.DataFrame:
    """Add floors and achieved rates to stage costs.

    floor_ms: see engines.record.roofline.Ceilings.floor_s. times_floor: median / floor. tb_per_s, tflop_per_s: rates
    that the median achieves.
    """
    rows = []
    for _, row in costs.iterrows():
        work = count_work(Segment(row["segment"]), counts, row)
        floor_s, median_s = ceilings.floor_s(work), row["p50_ms"] / 1e3
        rows.append(
            (1e3 * floor_s, median_s / floor_s, work.bytes / median_s / 1e12, work.operations / median_s / 1e12)
        )
    names = ["floor_ms", "times_floor", "tb_per_s", "tflop_per_s"]
    return costs.join(pd.DataFrame(rows, costs.index, names, dtype=float))
