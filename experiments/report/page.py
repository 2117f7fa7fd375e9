"""The page: one HTML file with its style, its tables and its images in it, which loads nothing."""

from __future__ import annotations

import base64
import datetime
import struct
from collections.abc import Sequence
from pathlib import Path

import jinja2

from engines.storage.files import replaced
from experiments.program.provenance import git_commit, installed
from experiments.report.provenance import date_text
from experiments.report.section import Picture, Section

TEMPLATE = Path(__file__).parent / "page.html.j2"
SCALE = 1400 / 900  # of our PNG files: a figure of a page's width has 900 CSS pixels, so that its letters can be read


def write_page(path: Path, found: Sequence[Section], title: str, command: str) -> Path:
    """Write the page. An existing file is replaced at once."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"data_uri": _data_uri, "size": _size}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title, command=command, sections=found, version=installed("pdv"), commit=git_commit(),
        date=date_text(datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
    )  # fmt: skip
    with replaced(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path


def _data_uri(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"


def _size(picture: Picture) -> tuple[int, int]:
    """Return the width and height of a figure on the page, in CSS pixels."""
    width, height = struct.unpack(">II", picture.png[16:24])  # of the PNG's header
    return round(width / SCALE), round(height / SCALE)
