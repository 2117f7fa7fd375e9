"""The parts of a calibration are kept until the profile is there, and only they are ever removed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from calibrate.parts import MARK, Parts, check_parts, remove_parts
from calibrate.profile_tables import COLUMNS
from engines.errors import InputError


def test_parts_of_other_settings_and_damaged_ones_are_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "p"

    def part(grid: int, value: int) -> int:
        table = Parts(folder, {"grid": grid}).get(
            "stage_costs", lambda: pd.DataFrame({name: [value] for name in COLUMNS["stage_costs"]})
        )
        return int(table["repeats"][0])

    assert (part(1, 1), part(1, 2), part(2, 3)) == (1, 1, 3)
    (folder / "stage_costs.parquet").write_bytes(b"PAR1")
    assert (part(2, 4), part(2, 5)) == (4, 4)


def test_parts_of_a_calibration_are_ours_to_remove_and_nothing_else(tmp_path: Path) -> None:
    Parts(tmp_path / "ours", {"grid": 1})
    Parts(tmp_path / "ours", {"grid": 2})
    assert (tmp_path / "ours" / MARK).is_file()
    (tmp_path / "ours" / ".pdv-0123.parquet").touch()  # of a kill
    remove_parts(tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    remove_parts(tmp_path / "ours")
    (tmp_path / "mine").mkdir()
    check_parts(tmp_path / "mine")
    (tmp_path / "mine" / "settings.json").write_text("{}")
    for refused in (check_parts, remove_parts, lambda folder: Parts(folder, {"grid": 1})):
        with pytest.raises(InputError, match="this folder was not made by a calibration"):
            refused(tmp_path / "mine")
    assert (tmp_path / "mine" / "settings.json").read_text() == "{}"
