"""The results that the tests of the report show."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli import main
from experiments.sweep.config import Sweep
from experiments.sweep.sweep import run_sweep
from tests.experiments import synthetic

FIDELITY = Path(__file__).parents[3] / "results" / "h100" / "fidelity"
SWEEP = {"architectures": ["pd", "pdv"], "concurrencies": [1, 4], "repeats": 2, "seed": 3, "acceptance": "0.7",
         "workload": {"requests": 8, "prompt_tokens": "16", "output_tokens": "8"}}  # fmt: skip


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small sweep, beside its profile."""
    folder = tmp_path_factory.mktemp("swept")
    synthetic.profile().save(folder / "profile")
    sweep = Sweep.from_dict({**SWEEP, "name": "small & <fast>", "profile": str(folder / "profile")})
    run_sweep(sweep, folder / "sweep", jobs=1, command="pdv sweep small.toml")
    return folder / "sweep"


@pytest.fixture(scope="session")
def path(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a measured experiment and of a sweep."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(FIDELITY), str(swept), "--out", str(path), "--title", "Two results"]) == 0
    return path
