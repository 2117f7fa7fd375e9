"""Figures of a sweep: what is drawn over what, at which size; and how long a sweep still takes."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats

from experiments.figures import style
from experiments.sweep import estimate as estimates
from experiments.sweep.config import Sweep
from experiments.sweep.estimate import Estimate
from experiments.sweep.figures import draw, planned, spread
from experiments.sweep.sweep import columns_of, places_of, prediction
from experiments.sweep.table import rows_table

PROFILE = Path(__file__).parents[3] / "results" / "demo-cpu" / "profile"
VALUES: dict[str, Any] = {"profile": str(PROFILE), "architectures": ["pd", "pdv"], "acceptance": "0.7"}
METRICS = ("throughput_tokens_per_s", "goodput_requests_per_s", "slo_attainment", "ttft_s.p95", "tpot_s.p95",
           "running_at_least_1")  # fmt: skip


def made_up(**axes: Any) -> tuple[Sweep, pd.DataFrame]:
    """A sweep, and rows with metrics that nobody simulated: TTFT grows with the square of the load."""
    sweep = Sweep.from_dict({**VALUES, **axes})
    settings = prediction(sweep.profile, None, True, None)
    cells = sweep.cells()
    places = places_of(cells, settings, range(sweep.repeats))
    random = np.random.default_rng(0)
    results = pd.DataFrame({"fingerprint": places["fingerprint"], "error": ""})
    for name in METRICS:
        results[name] = random.uniform(0.5, 1, len(results))
    table = rows_table(places, columns_of(cells, settings.acceptance), results.set_index("fingerprint"))
    table["ttft_s.p95"] *= table["concurrency"].fillna(1).astype(float) ** 2
    return sweep, table


def width_of(pdf: Path) -> float:
    """Width in inches."""
    box = re.search(rb"/MediaBox\s*\[\s*0\s+0\s+([\d.]+)", pdf.read_bytes())
    assert box is not None
    return float(box[1]) / 72


def test_there_is_a_page_of_all_metrics_and_a_column_for_each(tmp_path: Path) -> None:
    sweep, rows = made_up(concurrencies=[1, 8, 64], k=["2", "4"])
    paths = draw(sweep, rows, tmp_path)
    assert {path.name for path in paths} == {
        f"{name}.{kind}"
        for name in ("sweep", "throughput", "goodput", "slo", "ttft", "tpot", "running")
        for kind in ("pdf", "png")
    }
    widths = {path.stem: width_of(path) for path in paths if path.suffix == ".pdf"}
    assert widths.pop("sweep") == pytest.approx(style.PAGE)
    assert list(widths.values()) == pytest.approx([style.COLUMN] * 6)


def test_what_is_drawn_over_what() -> None:
    assert planned(*made_up(concurrencies=[1, 8], k=["2", "4"])) == ("concurrency", "k", [])
    axes = {"decode_limit": [1, 2, 3], "slots": [4, 8], "concurrency": [4]}
    assert planned(*made_up(grid=axes)) == ("decode_limit", "slots", [])
    three = planned(*made_up(concurrencies=[1, 8], grid={"decode_limit": [1, 2, 3], "slots": [4, 8]}))
    assert three == ("concurrency", "decode_limit", ["slots"])
    many = planned(*made_up(concurrencies=[1, 8], grid={"decode_limit": [*range(1, 10)], "slots": [4, 8]}))
    assert many == ("concurrency", "decode_limit", ["slots"])
    assert planned(*made_up(concurrencies=[4])) is None
    drawn = {"count": 9, "concurrency": {"uniform": [1, 9]}, "slots": {"uniform": [1, 9]}}
    assert planned(*made_up(random=drawn)) == ("concurrency", None, [])


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn from now on; none is written."""
    drawn: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, *_: drawn.append(figure) or [])
    return drawn


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_row_of_the_legend_for_each_group_where_one_row_is_too_wide(figures: list[Figure], tmp_path: Path) -> None:
    draw(*made_up(concurrencies=[1, 8], grid={"decode_limit": [2, 4, 16]}), tmp_path)
    page, column = figures[0], figures[1]
    assert labels(page) == ["PD", "PDV", "decode limit 2", "4", "16"]
    assert labels(column) == ["PD", "decode limit 2", "PDV", "4", "", "16"]  # column by column
    assert [line.get_linestyle() for line in page.legends[0].get_lines()] == ["-", "-", "-", "--", "--"]


def test_many_values_are_drawn_evenly_spaced(figures: list[Figure], tmp_path: Path) -> None:
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread(range(25), 5) == [0, 6, 12, 18, 24]
    draw(*made_up(concurrencies=[1, 8], k=[str(k) for k in range(1, 12)]), tmp_path)
    assert labels(figures[0]) == ["PD", "PDV", "k 1", "3", "6", "9", "11"]


def test_the_objective_is_drawn_if_there_is_one(figures: list[Figure], tmp_path: Path) -> None:
    draw(*made_up(concurrencies=[1, 8], slo_ttft_s=0.5), tmp_path)
    draw(*made_up(concurrencies=[1, 8], grid={"slo_ttft_s": [0.5, 1.0]}), tmp_path)
    said = [[text.get_text() for panel in figure.axes for text in panel.texts] for figure in (figures[0], figures[7])]
    assert said == [["SLO"], []]
    (line,) = [line for line in figures[0].axes[3].lines if line.get_linestyle() == ":"]
    assert list(line.get_ydata()) == [500.0, 500.0]


def test_axes_are_logarithmic_where_the_range_asks_for_it(figures: list[Figure], tmp_path: Path) -> None:
    draw(*made_up(concurrencies=[1, 8, 64]), tmp_path)
    panels: dict[str, Axes] = {panel.get_ylabel(): panel for panel in figures[0].axes}
    assert all(panel.get_xscale() == "log" for panel in panels.values())
    assert panels["P95 TTFT (ms)"].get_yscale() == "log"
    figures[0].canvas.draw()
    ticks = [tick.get_text() for tick in panels["P95 TTFT (ms)"].get_yticklabels()]
    assert {"1000", "1e+06"} < set(ticks)
    assert panels["P95 TPOT (ms)"].get_yscale() == "linear"
    assert len(panels["P95 TPOT (ms)"].collections) == 2  # a band for each architecture
    assert len([line for line in panels["P95 TPOT (ms)"].lines if len(line.get_xdata())]) == 2  # type: ignore[arg-type]
    draw(*made_up(concurrencies=[2, 4]), tmp_path)
    assert all(panel.get_xscale() == "linear" for panel in figures[-1].axes)


def test_bands_are_students_intervals() -> None:
    values = pd.Series([1.0, 1.2, 1.5])
    expected = stats.t.interval(0.9, 2, loc=values.mean(), scale=stats.sem(values))
    assert style.interval(0.9)(values) == pytest.approx(expected)
    assert style.interval(0.9)(values[:1]) == (1.0, 1.0)
    assert style.interval(0.9, 0.0, 1.0)(pd.Series([0.01, 1.0])) == (0.0, 1.0)


def test_the_time_left_is_that_of_the_work_since_the_first_result(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(estimates.time, "monotonic", lambda: clock[0])
    estimate, said = Estimate(100), io.StringIO()
    assert estimate.left_s() is None
    clock[0] = 20.0  # workers took that long to start
    assert estimate.done(10) == (10, 100)
    assert estimate.left_s() is None
    clock[0] = 25.0
    estimate.done(10)
    estimate.report(Console(file=said, width=80))
    assert said.getvalue() == ""
    clock[0] = 30.0
    estimate.done(10)
    assert estimate.left_s() == pytest.approx(35)  # 70 left, 2 a second
    estimate.report(Console(file=said, width=80))
    assert said.getvalue() == "30% done, about 35 s left\n"
