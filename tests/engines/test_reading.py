"""Every file that somebody gives is read, or refused in one line that names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tomli_w

from engines.errors import InputError, require_positive
from engines.policy.architecture import PD, load_architecture
from engines.storage.reading import MOST_SETTINGS_BYTES, read_toml

DEEP = 2000


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_toml("config", path)
    text = str(caught.value)
    assert str(path) in text
    assert len(text.splitlines()) == 1
    assert len(text) < 600
    return text


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "layout.toml"
    path.write_text('name = "é"\n', encoding="utf-8-sig")
    assert read_toml("config", path) == {"name": "é"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = ", "not valid TOML"),
        ("a = 1\na = 2\n", "not valid TOML"),
        ("a = 2026-13-45\n", "not valid TOML"),
        ("a = 1\0\n", "not valid TOML"),
        (f"a = {'9' * 5000}\n", "not valid TOML"),
        (f"a = {'9' * 400}.0\n", "a number that begins with 9999"),
        ("a = 1e400\n", "a number that begins with 1e400 is too large"),
        (f"a = {'9' * 400}\n", "the number needs more than 64 bits"),
        (f"[a]\nb = [1, {2**63}]\n", "a.b = 9223372036854775808: the number needs more than 64 bits"),
        (f"a = {'[' * DEEP}{']' * DEEP}\n", "nested more than 32 deep"),
        (f"a = {'{b=' * DEEP}1{'}' * DEEP}\n", "nested more than 32 deep"),
        (f"a = {'[' * 40}{']' * 40}\n", "nested more than 32 deep"),
        ("a = 1 # " + "x" * MOST_SETTINGS_BYTES, "more than 4 MiB"),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_cannot_be_read_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert problem in refusal(path)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('name = "é"', encoding="utf-16")
    assert "not valid TOML" in refusal(path)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A device would be read for ever, and a pipe waits for a writer."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    problems = {
        "folder": "it is a folder", "pipe": "a device or a pipe", "device": "a device or a pipe",
        "loop": "cannot read the file", "dangling": "cannot read the file (No such", "none": "cannot read the file",
        "a\0b": "cannot read the file",
    }  # fmt: skip
    for name, problem in problems.items():
        with pytest.raises(InputError) as caught:
            read_toml("config", tmp_path / name)
        assert problem in str(caught.value)


def test_an_architecture_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pd.toml"
    path.write_text(tomli_w.dumps(PD.to_dict()), encoding="utf-8-sig")
    assert load_architecture(str(path)) == PD


@pytest.mark.parametrize(
    "value", [10**5000, [[]] * 10_000, "x" * 10_000, "a\nb\x1b[2J", {"a": 10**5000}], ids=range(5)
)
def test_a_refusal_is_one_short_line_whatever_it_names(value: object) -> None:
    text = str(InputError("field\n", value, "remedy"))
    assert text.isprintable()
    assert len(text) < 400


def test_numbers_beyond_floating_point_are_refused() -> None:
    with pytest.raises(InputError, match="rate = "):
        require_positive("rate", 10**400)
