"""Where results cannot go, or something of others is, is said in one line before any work."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import InputError
from engines.record.run import RUN_FILES, Run
from experiments.cli import main
from experiments.program.outputs import check_file, check_output, check_record, check_table
from experiments.runner.cells import cell_folder, keep
from tests.experiments import synthetic


def make(path: Path, kind: str) -> None:
    """Something that is in the way at the path."""
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "loop of links":
        path.symlink_to(path.with_name("other"))
        path.with_name("other").symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)


def output(path: Path) -> None:
    check_output("out", path, RUN_FILES)


@pytest.mark.parametrize(
    ("check", "kind", "where", "says"),
    [
        (output, "file", "x", "x is a file"),
        (output, "file", "x/deep/er", "x is a file"),
        (output, "dangling link", "x", "a link to something that does not exist"),
        (output, "dangling link", "x/deep", "a link to something that does not exist"),
        (output, "loop of links", "x", "a link that leads back to itself"),
        (output, "loop of links", "x/deep", "Too many levels of symbolic links"),
        (output, "", "y" * 256, "File name too long"),
        (check_file, "folder", "x", "this is a folder"),
        (check_file, "file", "x/table.csv", "x is a file"),
        (check_file, "dangling link", "x", "a link to something that does not exist"),
        (check_file, "loop of links", "x", "a link that leads back to itself"),
        (check_file, "dangling link", "x/table.csv", "a link to something that does not exist"),
        (check_file, "pipe", "x", "a device or a pipe"),
        (check_file, "", "y" * 256, "File name too long"),
        (check_file, "", "/dev/full", "a device or a pipe"),
        (check_file, "", "/dev/null/x", "/dev/null is a file"),
    ],
)
def test_what_is_in_the_way_is_named(
    check: Callable[..., None], kind: str, where: str, says: str, tmp_path: Path
) -> None:
    make(tmp_path / "x", kind)
    before = sorted(tmp_path.rglob("*"))
    arguments = [tmp_path / where] if check is output else ["out", tmp_path / where]
    with pytest.raises(InputError, match=says) as refused:
        check(*arguments)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["folder", "dangling link", "loop of links", "pipe"])
@pytest.mark.parametrize("name", ["run.toml", "spans.parquet"])
def test_what_is_in_the_way_in_the_folder_is_named(kind: str, name: str, tmp_path: Path) -> None:
    make(tmp_path / name, kind)
    with pytest.raises(InputError, match=rf"out = '{tmp_path}/{name}'"):
        output(tmp_path)


def test_links_to_good_places_are_good(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "table.csv").touch()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "table").symlink_to("folder/table.csv")
    output(tmp_path / "link")
    output(tmp_path / "link" / "new" / "deep")
    check_file("out", tmp_path / "table")
    check_file("out", tmp_path / "link" / "other.csv")


def test_a_table_that_nobody_named_is_replaced_only_if_it_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "c_paired.csv"
    check_table("out", path, ("run", "quantity"))
    path.write_text("architecture,run,quantity\n")
    check_table("out", path, ("run", "quantity"))
    path.write_text("breakfast,dinner\n")
    with pytest.raises(InputError, match="was not written by pdv"):
        check_table("out", path, ("run", "quantity"))


def test_a_record_is_replaced_and_other_files_of_its_names_are_not(tmp_path: Path) -> None:
    synthetic.simulated().save(tmp_path / "ours")
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    check_record("out", tmp_path / "ours")
    synthetic.simulated().save(tmp_path / "ours")
    assert (tmp_path / "ours" / "notes.txt").read_text() == "mine"
    for name, text in (("run.toml", "[server]\nport = 80\n"), ("run.toml", "run = "), ("spans.parquet", "mine")):
        folder = tmp_path / f"{name}{len(text)}"
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(InputError, match=f"{name}.* was not written by pdv; move it"):
            check_record("out", folder)


def test_a_cell_is_replaced_only_where_it_was_made(tmp_path: Path) -> None:
    keep(synthetic.simulated(), tmp_path / "made", "digest")
    assert cell_folder(tmp_path, "made") == tmp_path / "made"
    assert cell_folder(tmp_path, "new") == tmp_path / "new"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    synthetic.simulated().save(tmp_path / "recorded")
    for name in ("notes", "recorded"):
        with pytest.raises(InputError, match=rf"out = '{tmp_path}/{name}'.*not written by .*move it"):
            cell_folder(tmp_path, name)


@pytest.mark.parametrize("name", ["../victim", "link", "a/b", ".."])
def test_a_cell_lies_in_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="would lie outside"):
        cell_folder(tmp_path / "out", name)


def test_simulate_refuses_before_work_and_compare_its_second_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic.profile().save(tmp_path / "profile")
    synthetic.live("pdv").save(tmp_path / "live")
    Path("taken").mkdir()
    Path("taken/requests.parquet").write_text("mine")
    Path("c_paired.csv").write_text("mine\n")
    for command, says in (
        ("simulate -p profile --out taken", "requests.parquet exists"),
        ("compare live live --out c.csv", "c_paired.csv"),
        ("compare live live --out /dev/full", "a device or a pipe"),
        ("trace live --out /dev/full", "a device or a pipe"),
        ("calibrate --out live/run.toml", "is a file"),
    ):
        assert main(command.split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert Path("taken/requests.parquet").read_text() == "mine"
    assert not Path("c.csv").exists()


def test_a_full_disk_is_one_line_and_the_old_record_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.profile().save(tmp_path / "profile")
    synthetic.simulated(name="old").save(tmp_path / "record")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(f"simulate -p {tmp_path}/profile -n 2 --out {tmp_path}/record".split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pdv: {tmp_path}/record/")
    assert line.endswith("No space left on device")
    assert Run.load(tmp_path / "record").name == "old"
    assert sorted(path.name for path in (tmp_path / "record").iterdir()) == sorted(RUN_FILES)


def test_a_simulation_does_not_take_the_place_of_a_live_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic.profile().save(Path("profile"))
    synthetic.live("pdv", "pdv", seed=1).save(Path("live"))
    Path("link").symlink_to("live")
    for options in (["--replay", "live"], ["-c", "2", "-n", "4"]):
        assert main(["simulate", "--profile", "profile", *options, "--out", "link"]) == 2
        assert capsys.readouterr().err.startswith("pdv: out = 'link': it holds a live run")
    assert Run.load(Path("live")).info["kind"] == "live"
