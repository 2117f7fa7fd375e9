"""The page in a real browser: nothing is loaded, nothing runs over the edge, on screens and on paper."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.experiments.report.browser import Tab, executable, tab

PAPER = 703  # CSS pixels between the margins of A4
LOST = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".table, .image, pre") || PRINT)
    .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"""
PROGRAM = executable()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: none in PATH, none of Playwright's")


@pytest.fixture(scope="module")
def browser(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A browser in which the page is open."""
    assert PROGRAM is not None
    with tab(PROGRAM, tmp_path_factory.mktemp("browser")) as opened:
        opened.resize(1280)
        opened.open(path)
        yield opened


def test_the_page_loads_nothing_and_reports_no_error(browser: Tab, path: Path) -> None:
    requested = [event["request"]["url"] for event in browser.named("Network.requestWillBeSent")]
    assert path.resolve().as_uri() in requested
    assert {url for url in requested if not url.startswith("data:")} == {path.resolve().as_uri()}
    assert browser.named("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []


def test_all_images_are_shown(browser: Tab) -> None:
    assert browser.value("document.images.length") >= 7
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth > 100)")


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_runs_over_the_edge_of_a_screen(browser: Tab, width: int) -> None:
    browser.resize(width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(LOST.replace("PRINT", "false")) == []
    assert browser.value(
        """[...document.querySelectorAll(".table")].every(e => e.scrollWidth <= e.clientWidth)"""
    ) is (width == 1280)  # wide tables scroll in their own frames


def test_paper_shows_all_of_it(browser: Tab) -> None:
    browser.resize(PAPER)
    browser.ask("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.value(LOST.replace("PRINT", "true")) == []
        folded = "[...document.querySelectorAll('details table, details pre')]"
        assert browser.value(f"{folded}.length") >= 3
        assert browser.value(f"{folded}.every(e => e.checkVisibility())")
        printed = base64.b64decode(browser.ask("Page.printToPDF", preferCSSPageSize=True)["data"])
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) in range(5, 16)
    finally:
        browser.ask("Emulation.setEmulatedMedia", media="")


def test_tables_have_names_and_headings_for_those_who_hear_them(browser: Tab) -> None:
    browser.resize(1280)
    nodes = browser.ask("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert len(roles["table"]) >= 8
    assert all(roles["table"])
    assert len(roles["columnheader"]) > 50
    assert len(roles["rowheader"]) > 150
    assert all(roles["image"])
    assert roles["main"]
