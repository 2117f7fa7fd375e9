"""A profile survives the disk, and a damaged one is refused with the place and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibrate.profile import COLUMNS, Profile
from engines.errors import InputError
from tests.calibrate.profiles import INFO, made_up


def test_round_trip(tmp_path: Path) -> None:
    profile = made_up(info={**INFO, "batch_buckets": [1, 4, 16]}, tapes={3: np.array([-1, 1, 0], dtype=np.int8)})
    loaded = Profile.load(profile.save(tmp_path / "profile"))
    assert loaded.info == profile.info
    assert loaded.batch_buckets == (1, 4, 16)
    for name in COLUMNS:
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(profile, name), rtol=1e-5)
    assert {r: t.tolist() for r, t in loaded.tapes.items()} == {3: [-1, 1, 0]}
    assert loaded.tapes[3].dtype == np.int8


def test_saving_a_loaded_profile_changes_no_byte(tmp_path: Path) -> None:
    made_up().save(tmp_path / "first")
    Profile.load(tmp_path / "first").save(tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


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


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "profile.toml").unlink(), "no profile.toml"),
        (_edit("profile.toml", lambda text: text.replace("schema_version = 2", "schema_version = 99")), "99"),
        (_edit("profile.toml", lambda text: text.replace("schema_version = 2", "schema_version = true")), "True"),
        (_edit("profile.toml", lambda text: text.split("[rows]")[0].replace("dtype", "rows = 3\ndtype")), "rows = 3"),
        (_edit("profile.toml", lambda text: text[:20]), "not valid TOML"),
        (_edit("profile.toml", lambda text: text.replace("max_context = 2048", "max_context = 0")), "max_context"),
        (_edit("profile.toml", lambda text: text.replace('pair = "made up"', "")), "pair"),
        (_edit("profile.toml", lambda text: text.replace("dtype", "batch_buckets = [4, 1]\ndtype")), "batch_buckets"),
        (lambda folder: (folder / "contention.csv").unlink(), "contention.csv"),
        (lambda folder: (folder / "tapes.parquet").write_bytes(b"PAR1"), "tapes.parquet"),
        (_edit("stage_costs.csv", lambda text: text[: len(text) // 2]), "cut off"),
        (_edit("stage_costs.csv", lambda text: text[: text.rindex("\n", 0, -1) + 1]), "truncated"),
        (_edit("stage_costs.csv", lambda text: text[: text.index("\n") + 1]), "truncated"),
        (_edit("stage_costs.csv", lambda text: ""), "not a readable CSV"),
        (_edit("stage_costs.csv", lambda text: text.replace("mean_ms", "mean")), "column mean_ms is missing"),
        (_cell("p50_ms", ""), "line 4 column p50_ms"),
        (_cell("group", "", "contention"), "line 4 column group"),
        (_cell("mean_ms", "fast"), "line 4 column mean_ms = 'fast'"),
        (_cell("mean_ms", "-1"), "line 4 column mean_ms"),
        (_cell("mean_ms", "inf"), "line 4 column mean_ms"),
        (_cell("going_on_ms", "-0.1", "host_times"), "line 4 column going_on_ms"),
        (_cell("step", "decode", "host_times"), "line 4 column step = 'decode'"),
        (_cell("step", "prefill", "host_times"), "this step is there twice"),
        (_cell("p05_ms", "1000"), "quantiles must rise"),
        (_cell("segment", "decode"), "line 4 column segment = 'decode'"),
        (_cell("rate", "1.2", "contention"), "line 4 column rate = '1.2'"),
        (_cell("rate", "0", "contention"), "line 4 column rate"),
        (_cell("rate", "0.9", "acceptance"), "cannot rise"),
        (_cell("position", "7", "acceptance"), "positions must count"),
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
    path.write_text(path.read_text().replace("schema_version = 2", "schema_version = 1"))
    costs = pd.read_csv(tmp_path / "stage_costs.csv")
    of_segment = {"prefill_draft": 0.7, "prefill_target": 0.7, "draft": 0.4, "verify": 0.5}
    costs.assign(host_ms=costs["segment"].map(of_segment)).to_csv(tmp_path / "stage_costs.csv", index=False)
    found = Profile.load(tmp_path).host_times.set_index("step")
    assert found["woken_ms"].to_dict() == {"prefill": 0.7, "draft": 0.4, "verify": 0.5, "draft+verify": 0.5}
    assert (found["going_on_ms"] == found["woken_ms"]).all()
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
