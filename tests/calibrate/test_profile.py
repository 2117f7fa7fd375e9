"""A profile survives the disk, and a damaged one is refused with the place and the remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibrate.profile import COLUMNS, Profile
from engines.errors import InputError
from engines.policy.architecture import Step
from engines.policy.captured_sizes import TOKENS
from tests.calibrate.profiles import INFO, made_up


def test_round_trip(tmp_path: Path) -> None:
    profile = made_up(info={**INFO, "batch_buckets": [1, 4, 16]}, tapes={3: np.array([-1, 1, 0], dtype=np.int8)})
    loaded = Profile.load(profile.save(tmp_path / "profile"))
    assert loaded.info == profile.info
    assert loaded.info["batch_buckets"] == [1, 4, 16]
    for name in COLUMNS:
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(profile, name), rtol=1e-5)
    assert {r: t.tolist() for r, t in loaded.tapes.items()} == {3: [-1, 1, 0]}
    assert loaded.tapes[3].dtype == np.int8


def test_saving_a_loaded_profile_changes_no_byte(tmp_path: Path) -> None:
    made_up().save(tmp_path / "first")
    Profile.load(tmp_path / "first").save(tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_saving_replaces_the_profile_as_a_whole_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taped = made_up(tapes={3: np.array([-1, 1, 0], dtype=np.int8)})
    taped.save(tmp_path)
    made_up().save(tmp_path / "part-1")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            made_up(info={**INFO, "device": "another"}).save(tmp_path)
    assert Profile.load(tmp_path).info["device"] == INFO["device"]
    made_up(info={**INFO, "device": "another"}).save(tmp_path)
    assert Profile.load(tmp_path).info["device"] == "another"
    assert not Profile.load(tmp_path).tapes  # those of the profile before are not taken for its own
    assert Profile.load(tmp_path / "part-1").info["device"] == INFO["device"]


def test_tables_keep_six_digits(tmp_path: Path) -> None:
    profile = made_up()
    profile.stage_costs["mean_ms"] = 1 / 3
    _, *lines = (profile.save(tmp_path) / "stage_costs.csv").read_text().splitlines()
    assert {line.split(",")[-1] for line in lines} == {"0.333333"}


def _edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(change((folder / name).read_text()))

    return damage


def _cell(column: str, value: str, table: str = "stage_costs") -> Callable[[Path], None]:
    """Put a value in the third row (line 4) of a table."""

    def change(text: str) -> str:
        lines = text.splitlines()
        cells = lines[3].split(",")
        cells[lines[0].split(",").index(column)] = value
        return "\n".join([*lines[:3], ",".join(cells), *lines[4:]]) + "\n"

    return _edit(f"{table}.csv", change)


def _link(path: Path, goal: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(goal)


def _tapes(folder: Path, bits: object) -> None:
    pd.DataFrame({"request": [7], "bits": [bits]}).to_parquet(folder / "tapes.parquet")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "profile.toml").unlink(), "no profile.toml"),
        (_edit("profile.toml", lambda text: text.replace("schema_version = 4", "schema_version = 99")), "99"),
        (_edit("profile.toml", lambda text: text.replace("schema_version = 4", "schema_version = true")), "True"),
        (_edit("profile.toml", lambda text: text.split("[rows]")[0].replace("dtype", "rows = 3\ndtype")), "rows = 3"),
        (_edit("profile.toml", lambda text: text[:20]), "not valid TOML"),
        (_edit("profile.toml", lambda text: text.replace("max_context = 2048", "max_context = 0")), "max_context"),
        (_edit("profile.toml", lambda text: text.replace('pair = "made up"', "")), "pair"),
        (_edit("profile.toml", lambda text: text.replace("dtype", "batch_buckets = [4, 1]\ndtype")), "batch_buckets"),
        (lambda folder: (folder / "contention.csv").unlink(), "contention.csv"),
        (lambda folder: (folder / "tapes.parquet").write_bytes(b"PAR1"), "tapes.parquet"),
        (_edit("stage_costs.csv", lambda text: text[: text.rindex(",")]), "incomplete"),
        (_edit("stage_costs.csv", lambda text: text[: text.rindex("\n", 0, -1) + 1]), "truncated"),
        (_edit("stage_costs.csv", lambda text: text[: text.index("\n") + 1]), "truncated"),
        (_edit("stage_costs.csv", lambda text: ""), "not a readable CSV"),
        (_edit("stage_costs.csv", lambda text: text.replace("mean_ms", "mean")), "column mean_ms is missing"),
        (_cell("p50_ms", ""), "line 4 column p50_ms"),
        (_cell("group", "", "contention"), "line 4 column group"),
        (_cell("mean_ms", "fast"), "line 4 column mean_ms = 'fast'"),
        (_cell("mean_ms", "-1"), "line 4 column mean_ms"),
        (_cell("mean_ms", "inf"), "line 4 column mean_ms"),
        (_cell("beside_ms", "-0.1", "host_times"), "line 4 column beside_ms"),
        (_cell("step", "decode", "host_times"), "line 4 column step = 'decode'"),
        (_cell("step", "prefill", "host_times"), "this step appears twice"),
        (_cell("p05_ms", "1000"), "quantiles must rise"),
        (_cell("segment", "decode"), "line 4 column segment = 'decode'"),
        (_cell("rate", "1.2", "contention"), "line 4 column rate = '1.2'"),
        (_cell("rate", "0", "contention"), "line 4 column rate"),
        (_cell("rate", "1e-15", "contention"), "line 4 column rate = '1e-15': needs a number from"),
        (_cell("solo_ms", "1e-300", "contention"), "line 4 column solo_ms = '1e-300': needs a number from"),
        (_cell("solo_ms", "1e300", "contention"), "line 4 column solo_ms = '1e300': needs a number from"),
        (_cell("mean_ms", "1e-300"), "line 4 column mean_ms = '1e-300': needs a number from"),
        (_cell("p95_ms", "1e300"), "line 4 column p95_ms = '1e300': needs a number from"),
        (_cell("p05_ms", "0"), "line 4 column p05_ms = '0': needs a number from"),
        (_cell("kernels", "1e300"), "line 4 column kernels = '1e300': needs a number from"),
        (_cell("wake_up_ms", "1e300", "host_times"), "line 4 column wake_up_ms = '1e300': needs a number from"),
        (_cell("rate", "0.9", "acceptance"), "cannot rise"),
        (_cell("position", "7", "acceptance"), "positions must count"),
        (_edit("profile.toml", lambda text: text.replace("dtype", "batch_buckets = 5\ndtype")), "batch_buckets = 5"),
        (_edit("profile.toml", lambda text: text.replace("dtype", "batch_buckets = [4, 2]\ndtype")), "rising"),
        (_edit("profile.toml", lambda text: text.replace("dtype", "batch_buckets = [true]\ndtype")), "buckets.0"),
        (_edit("profile.toml", lambda text: text.replace("max_context = 2048", 'max_context = "2048"')), "'2048'"),
        (_edit("profile.toml", lambda text: text.replace("draft_length = 4", "draft_length = {a = 1}")), "{'a': 1}"),
        (_edit("profile.toml", lambda text: text.replace("[versions]", "[other]")), "versions = None: it is"),
        (_edit("profile.toml", lambda text: text.replace("stage_costs =", 'stage_costs = "x" #')), "rows.stage"),
        (_edit("profile.toml", lambda text: text.replace('"made up"', "3", 1)), "device = 3"),
        (_edit("stage_costs.csv", lambda text: text.replace("p95_ms", "p05_ms")), "column p05_ms appears twice"),
        (_edit("stage_costs.csv", lambda text: text.replace("mean_ms", "mean_ms,mean_ms")), "mean_ms appears twice"),
        (_edit("stage_costs.csv", lambda text: text[:-1] + ",1\n"), "= '14 cells': needs 13"),
        (_cell("mean_ms", "1e-300"), "column mean_ms = '1e-300': needs a number from 1e-06 up to 1e+09"),
        (_cell("mean_ms", "1e300"), "column mean_ms = '1e300'"),
        (_cell("kernels", "1e18", "contention"), "column kernels = '1e18'"),
        (_cell("batch_size", "1.5"), "column batch_size = '1.5': needs a whole number"),
        (_cell("batch_size", "9" * 400), "column batch"),
        (lambda folder: _link(folder / "stage_costs.csv", "/dev/zero"), "a device or a pipe"),
        (lambda folder: _link(folder / "tapes.parquet", "nowhere"), "No such file"),
        (lambda folder: _tapes(folder, [0, 300]), "row 0 column bits = 300: a tape holds -1, 0 and 1"),
        (lambda folder: _tapes(folder, [0, None]), "row 0 column bits = None"),
        (lambda folder: _tapes(folder, "011"), "needs a whole number and a list of -1, 0 and 1"),
    ],
)  # fmt: skip
def test_a_damaged_profile_is_refused(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    made_up().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError) as refused:
        Profile.load(tmp_path)
    assert says in str(refused.value)
    assert "pdv calibrate" in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_profile_of_version_1_takes_a_works_host_time_from_its_slowest_segment(tmp_path: Path) -> None:
    made_up().save(tmp_path)
    (tmp_path / "host_times.csv").unlink()
    path = tmp_path / "profile.toml"
    path.write_text(path.read_text().replace("schema_version = 4", "schema_version = 1"))
    for name in ("stage_costs", "contention"):
        table = pd.read_csv(tmp_path / f"{name}.csv").rename(columns={"batch_size": "batch"})
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    costs = pd.read_csv(tmp_path / "stage_costs.csv")
    of_segment = {"prefill_draft": 0.7, "prefill_target": 0.7, "draft": 0.4, "verify": 0.5}
    costs.assign(host_ms=costs["segment"].map(of_segment)).to_csv(tmp_path / "stage_costs.csv", index=False)
    found = Profile.load(tmp_path).host_times.set_index("step")
    halves = {"prefill": 0.35, "draft": 0.2, "verify": 0.25, "draft+verify": 0.25}
    assert found["before_ms"].to_dict() == found["after_ms"].to_dict() == halves
    assert (found.drop(columns=["before_ms", "after_ms"]) == 0).all(axis=None)
    for column, value, says in (
        ("host_ms", None, "stage_costs.csv = .*column host_ms is missing"),
        ("segment", None, "stage_costs.csv = .*column segment is missing"),
        ("host_ms", -5, "stage_costs.csv line 2 column host_ms"),
        ("host_ms", "fast", "stage_costs.csv line 2 column host_ms = 'fast'"),
    ):  # fmt: skip
        damaged = costs.assign(host_ms=0.1).astype({"host_ms": object})
        if value is None:
            damaged = damaged.drop(columns=column)
        else:
            damaged.loc[0, column] = value
        damaged.to_csv(tmp_path / "stage_costs.csv", index=False)
        with pytest.raises(InputError, match=says):
            Profile.load(tmp_path)


def test_a_profile_of_version_3_has_one_host_time_for_a_wake_up_and_one_for_the_rest(tmp_path: Path) -> None:
    made_up().save(tmp_path)
    path = tmp_path / "profile.toml"
    path.write_text(path.read_text().replace("schema_version = 4", "schema_version = 3"))
    old = pd.DataFrame(
        {"step": list(Step), "wake_up_ms": [0.9, 0.5, 0.3, 0.8], "back_to_back_ms": [0.6, 0.4, 0.4, 0.7]}
    )
    old.to_csv(tmp_path / "host_times.csv", index=False)
    found = Profile.load(tmp_path).host_times.set_index("step")
    assert found["before_ms"].tolist() == found["after_ms"].tolist() == pytest.approx([0.3, 0.2, 0.15, 0.35])
    assert found["wake_up_ms"].tolist() == pytest.approx([0.3, 0.1, 0, 0.1])
    for damaged, says in (
        (old.drop(columns="wake_up_ms"), "column wake_up_ms is missing"),
        (old.assign(back_to_back_ms=-1.0), "column back_to_back_ms"),
    ):
        damaged.to_csv(tmp_path / "host_times.csv", index=False)
        with pytest.raises(InputError, match=says):
            Profile.load(tmp_path)


def test_what_a_profile_pads_to_is_named_in_it(tmp_path: Path) -> None:
    assert made_up().captured is None
    assert made_up(info={**INFO, "batch_buckets": [1, 4]}).captured == ([1, 4], TOKENS)
    assert made_up(info={**INFO, "batch_buckets": [1, 4], "token_buckets": [16, 40]}).captured == ([1, 4], [16, 40])


def test_a_step_whose_host_time_was_never_measured_is_refused() -> None:
    times = made_up().host_times
    with pytest.raises(InputError, match=r"host_times.csv = .*draft\+verify.*: the step was never measured"):
        made_up(host_times=times[times["step"] != "draft+verify"])


def test_the_least_that_can_be_is_no_damage(tmp_path: Path) -> None:
    """One draft at a time, stages that always take as long, and a description that does not count its rows."""
    steady = made_up().stage_costs
    for name in ("p05_ms", "p25_ms", "p50_ms", "p75_ms", "p95_ms"):
        steady[name] = steady["mean_ms"]
    made_up(stage_costs=steady, info={**INFO, "draft_length": 1}).save(tmp_path)
    path = tmp_path / "profile.toml"
    path.write_text(path.read_text().split("[rows]")[0])
    assert Profile.load(tmp_path).info["draft_length"] == 1


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        made_up(contention=made_up().contention.iloc[:0])


def test_a_point_measured_twice_is_refused() -> None:
    costs = made_up().stage_costs
    with pytest.raises(InputError, match="twice"):
        made_up(stage_costs=pd.concat([costs, costs.tail(1)]))


def test_a_segment_never_measured_is_refused() -> None:
    costs = made_up().stage_costs
    with pytest.raises(InputError, match="never measured"):
        made_up(stage_costs=costs[costs["segment"] != "verify"])


def test_byte_order_marks_are_no_damage(tmp_path: Path) -> None:
    made_up().save(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    pd.testing.assert_frame_equal(Profile.load(tmp_path).stage_costs, made_up().stage_costs, rtol=1e-5)


@pytest.mark.parametrize("folder", ["demo-cpu/profile", "h100/profile-llama2-7b", "h200/profile-llama2-7b"])
def test_the_profiles_that_ship_are_read(folder: str) -> None:
    profile = Profile.load(Path(__file__).parents[2] / "results" / folder)
    assert len(profile.tapes) == 12
