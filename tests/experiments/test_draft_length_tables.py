"""What the tables of draft lengths say of sweeps that are small enough to check by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from experiments.bench.draft_lengths import FIXED, FOLLOWING, SWEEPS, gains_table, shown_table, speeds, sweep_of

CLOSED = {"0": 100.0, "2": 120.0, "4": 110.0, "8": 60.0, "2-8": 121.0, "load1-8": 125.0, FOLLOWING: 126.0}
OPEN = {"0": 2.0, "2": 1.25, "4": 1.6, "8": 4.0, FOLLOWING: 1.28}


def cells(closed: bool, layout: str = "pd", factor: float = 1.0) -> pd.DataFrame:
    speed = CLOSED if closed else OPEN
    made = pd.DataFrame({"k": list(speed), "architecture": layout, "acceptance": "0.8"})
    values = pd.Series(list(speed.values()))
    values = values.where(made["k"] != FOLLOWING, values * factor)
    return made.assign(
        concurrency=pd.array([4 if closed else None] * len(made), dtype="Int64"), rate=None if closed else 20.0,
        throughput_tokens_per_s=values if closed else 1.0, **{"latency_s.mean": 1.0 if closed else values},
    )  # fmt: skip


def printed(table: object) -> str:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_gain_is_over_the_best_fixed_length_in_throughput_or_inverse_latency() -> None:
    assert speeds(cells(closed=True))["gain"].item() == pytest.approx(126 / 120 - 1)
    assert speeds(cells(closed=False))["gain"].item() == pytest.approx(1.25 / 1.28 - 1)


def test_the_tables_show_the_speeds_and_the_gains_of_each_architecture() -> None:
    assert "│ 100 │ 120 │ 110 │ 60 │ 121 │ 125     │ 126     │ +5.0% │" in printed(shown_table(cells(closed=True)))
    both = pd.concat([cells(closed=True), cells(closed=True, layout="pdv", factor=0.5)])
    text = printed(gains_table({"closed": both, "open": cells(closed=False)}))
    rows = [[part.strip() for part in line.split("│")[2:6]] for line in text.splitlines() if "│" in line]
    assert rows == [["1", *["+5.0%"] * 3], ["1", *["-47.5%"] * 3], ["1", *["-2.3%"] * 3]]
    assert "loses more than 1%: k = 2 in 2" in " ".join(text.split())


def test_every_load_has_all_draft_lengths() -> None:
    loads = {"closed": 7, "open": 3, "long": 2}
    for name in SWEEPS:
        sweep = sweep_of(name, Path("profile"), repeats=2)
        by_load = pd.Series([cell.settings.k for cell in sweep.cells()]).groupby(
            [
                repr(sorted((axis, str(value)) for axis, value in cell.axes.items() if axis != "k"))
                for cell in sweep.cells()
            ]
        )
        assert len(by_load) == 2 * 5 * loads[name]
        assert all({*FIXED, FOLLOWING} <= set(lengths) for _, lengths in by_load)
