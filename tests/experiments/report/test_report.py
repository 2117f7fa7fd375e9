"""The page of a report: what it shows of each kind of result, and what it refuses."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from experiments.cli import main
from experiments.report.tables import of_frame, of_printed, text
from experiments.search.config import Search
from experiments.search.search import run_search
from tests.experiments import synthetic
from tests.experiments.report.conftest import FIDELITY, SWEEP

ROOT = Path(__file__).parents[3]


class Page(HTMLParser):
    """The tables, images, links and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.scopes: list[str | None] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self._open: list[str] = []
        self.html = path.read_text()
        self.feed(self.html)
        self.text = " ".join(html.unescape(re.sub("<[^>]*>", " ", self.html.partition("</style>")[2])).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "caption":
            self.captions.append("")
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            if tag == "th":
                self.scopes.append(given.get("scope"))
        elif tag == "img":
            self.images.append(given)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "caption" in self._open:
            self.captions[-1] += data
        elif {"th", "td"} & {*self._open[-1:]}:
            self.tables[-1][-1][-1] += data

    def table(self, caption: str) -> list[list[str]]:
        """The rows of the first table whose caption has this text."""
        return next(rows for rows, said in zip(self.tables, self.captions, strict=True) if caption in said)


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path)


def test_the_page_loads_nothing(page: Page) -> None:
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"url\(|@import|<script", page.html)


def test_tables_have_captions_and_every_heading_says_what_it_is_of(page: Page) -> None:
    assert len(page.captions) == len(page.tables)
    assert all(caption.strip() for caption in page.captions)
    assert set(page.scopes) == {"col", "row"}
    for rows in page.tables:
        assert {len(row) for row in rows} == {len(rows[0])}


def test_images_have_texts(page: Page) -> None:
    figures = {path.name for path in (FIDELITY / "figures").glob("*.png")}
    assert len(page.images) == len(figures) + 1  # and that of the sweep
    assert all(image["alt"] and image["width"] for image in page.images)


def test_an_experiment_shows_its_errors_as_compare_prints_them(page: Page) -> None:
    rows = page.table("Throughput and TPOT")
    metrics = pd.read_csv(FIDELITY / "comparison.csv")
    errors = metrics.loc[metrics["metric"] == "throughput_tokens_per_s", "error"]
    assert len(rows) == len(errors) + 2  # the headings, and the mean
    assert rows[-1][rows[0].index("tokens/s error")] == f"{errors.abs().mean():.1%}"
    checked = pd.read_csv(FIDELITY / "cells.csv")["checked"].sum()
    assert f"{checked:,.0f} of {checked:,.0f} checked outputs are exact" in page.text
    causes = page.table("Where the error of the mean latency")
    by_cause = [float(value) for value in causes[1][1:] if value != "-"]
    assert sum(by_cause[:-1]) == pytest.approx(by_cause[-1], abs=0.25)


def test_every_file_is_named_with_its_digest(page: Page, swept: Path) -> None:
    files = {row[0]: row[1:] for rows in page.tables for row in rows if rows[0][0] == "file"}
    for path in (FIDELITY / "comparison.csv", swept / "rows.parquet"):
        assert files[path.name][1] == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert files["rows.parquet"][0] == "8"


def test_provenance_has_command_device_versions_seeds_and_configuration(page: Page) -> None:
    assert "pdv experiment fidelity --only live --out runs/fidelity --budget-s 560" in page.text  # of the profile
    assert "torch 2.11.0, transformers 5.17.0, python 3.12.3" in page.text
    assert "NVIDIA H100 80GB HBM3" in page.text
    assert "seeds 3 to 4" in page.text
    assert "pdv sweep small.toml" in page.text
    assert "concurrencies = [" in page.text
    assert len(page.table("Runs")) == 1 + len(list((FIDELITY / "live").iterdir()))


def test_a_sweep_shows_its_best_cells_and_escapes_its_name(page: Page, swept: Path) -> None:
    rows = page.table("cells, by throughput")
    assert "small &amp; &lt;fast&gt;" in page.html
    best = pd.read_parquet(swept / "summary.parquet").nlargest(1, "throughput_tokens_per_s").iloc[0]
    assert rows[1][:3] == [str(best["cell"]), best["architecture"], str(best["concurrency"])]
    assert "<fast>" not in page.html


def test_folders_below_a_folder_are_found(work: Path, tmp_path: Path) -> None:
    assert main(["report", str(work), "--out", str(tmp_path / "r.html")]) == 0
    found = Page(tmp_path / "r.html")
    assert re.findall(r"<h2[^>]*>(\w+) ", found.html) == ["live", "simulated"]
    assert found.table("Means over the repeats")[1][0] == "pdv"


def test_comparisons_without_an_experiment_and_older_benches_are_shown_too(tmp_path: Path) -> None:
    folders = [ROOT / "results" / "demo-cpu", ROOT / "results" / "h200" / "bench-llama2-7b"]
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "r.html")]) == 0
    found = Page(tmp_path / "r.html")
    compared = pd.read_csv(folders[0] / "comparison.csv")
    first = compared[compared["metric"] == "throughput_tokens_per_s"].iloc[0]
    numbers = [f"{first['live']:.1f}", f"{first['simulated']:.1f}"]
    assert found.table("Throughput and TPOT")[1][:4] == ["baseline", "1 client", *numbers]
    assert found.table("Stages alone")[1][:2] == ["draft", "1"]
    engines = found.table("Engines in closed loops")
    assert dict(zip(engines[0], engines[1], strict=True))["TTFT median (ms)"] == "8.398"
    assert "pdv bench --pair" in found.text


@pytest.mark.parametrize("broken", ["missing", "empty", "text"])
def test_bad_folders_are_refused_in_one_line(broken: str, tmp_path: Path, refusal: Callable[[str], str]) -> None:
    folder = tmp_path / "results"
    if broken != "missing":
        folder.mkdir()
    if broken == "text":
        (folder / "comparison.csv").write_text("architecture,metric\npd,ttft\n")
    said = refusal(f"report {folder} --out {tmp_path}/r.html")
    expected = {"missing": "not a folder", "empty": "no results in it", "text": "has no column draft_length"}
    assert expected[broken] in said
    assert not (tmp_path / "r.html").exists()


def test_a_report_replaces_no_file_of_a_result(swept: Path, refusal: Callable[[str], str]) -> None:
    assert "read-only" not in refusal(f"report {swept} --out {swept}")


def test_numbers_have_four_significant_digits() -> None:
    assert [text(value) for value in (1234.56, 0.0123456, 12.0, float("nan"), None, 1234, "pd", True)] == [
        "1,235", "0.01235", "12", "-", "-", "1,234", "pd", "yes",
    ]  # fmt: skip


def test_a_printed_table_keeps_its_groups_and_its_totals() -> None:
    from experiments.compare.report import cells_table

    table = cells_table("errors")
    table.add_row("pd", "1 client")
    table.add_section()
    table.add_row("mean", "", style="bold")
    page_table = of_printed(table, "a.csv")
    assert [(line.total, line.starts) for line in page_table.lines] == [(False, False), (True, True)]
    assert [heading.number for heading in page_table.headings] == [False, True]
    assert of_frame(pd.DataFrame({"n": [1.5]}), "c", form="{:+.1f}".format).lines[0].cells == ["+1.5"]


def test_a_search_shows_the_chosen_candidate_and_why_others_are_not(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    synthetic.profile().save(tmp_path / "profile")
    search = Search.from_dict({
        "name": "small", "profile": str(tmp_path / "profile"), "architectures": ["pd"], "concurrency": 4,
        "acceptance": "0.7", "trials": 4, "repeats": 1, "finalists": 2, "final_repeats": 2,
        "workload": SWEEP["workload"], "space": {"decode_limit": {"choice": [1, 2, 4]}},
    })  # fmt: skip
    candidates = run_search(search, tmp_path / "search", jobs=1).candidates
    assert main(["report", str(tmp_path / "search"), "--out", str(tmp_path / "r.html")]) == 0
    found = Page(tmp_path / "r.html")
    best = candidates[candidates["status"] == "chosen"].iloc[0]
    assert (
        f"Chosen: pd, decode limit {best['decode_limit']}. On other seeds: {best['final_objective']:,.4g}"
        in found.text
    )
    rows = found.table("Every candidate")
    assert [row[-1] for row in rows[1:]] == candidates["reason"].tolist()
    assert [image["alt"] for image in found.images] == [
        "Candidates, and the Pareto front of the objective against P95 TPOT"
    ]


def test_failed_cells_are_named(tmp_path: Path) -> None:
    synthetic.profile().save(tmp_path / "profile")
    (tmp_path / "mine.toml").write_text(
        'mode = "simulated"\nprofile = "profile"\narchitectures = ["pd"]\nconcurrencies = [2]\nk = ["4", "7"]\n'
        '[workload]\nrequests = 4\nprompt_tokens = "16"\noutput_tokens = "8"\n'
    )
    main(["experiment", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"), "--jobs", "1"])
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "r.html")]) == 0
    found = Page(tmp_path / "r.html")
    failed = cells[cells["status"] == "failed"]
    assert len(failed)
    assert all(" ".join(error.split()) in found.text for error in failed["error"])


def test_maps_show_their_figures_and_the_winner_of_every_cell(tmp_path: Path) -> None:
    folder = FIDELITY.parent / "maps"
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 0
    found = Page(tmp_path / "r.html")
    tables = {path.name: pd.read_parquet(path) for path in folder.glob("*.parquet")}
    assert len(found.images) == len(tables) > 3
    rows = found.table("from speculation-gain.parquet")
    gain = tables["speculation-gain.parquet"]
    assert [row[rows[0].index("winner")] for row in rows[1:]] == gain["winner"].tolist()
    assert any(
        f"{gain['gain'].min():.2f} to {gain['gain'].max():.2f} times" in (i["alt"] or "") for i in found.images
    )
