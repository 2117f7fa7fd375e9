"""Compiled modules: the same result to the last bit, and never those of other sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines import compiled

ROOT = Path(__file__).parents[2]


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of builds, which is empty, and no module is compiled."""
    monkeypatch.setattr(compiled, "BUILDS", tmp_path)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, compiled._Finder)])
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    return tmp_path


def test_a_build_of_these_sources_is_used(builds: Path) -> None:
    compiled.build_folder().mkdir()
    compiled.use()
    assert compiled.in_use()


def test_a_build_of_other_sources_is_not(builds: Path) -> None:
    (builds / "0123456789abcdef").mkdir()
    compiled.use()
    assert not compiled.in_use()


def test_a_build_can_be_switched_off(builds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled.build_folder().mkdir()
    monkeypatch.setenv(compiled.SWITCH, "0")
    compiled.use()
    assert not compiled.in_use()


DIGESTS = """
import sys
sys.argv = ["random_runs", "6"]
from engines.compiled import in_use
from tests.sim import random_runs
import pickle
import sim.replica
from engines.policy.segment_shape import SegmentShape
print(in_use(), sim.replica.__file__.endswith(".py"))
for seed in range(6):
    print(random_runs.digest(random_runs.random_run(seed)))
costs = random_runs.costs("h100")
for each in costs, pickle.loads(pickle.dumps(costs)):  # as worker processes get them
    print(each.cost(SegmentShape.verify(4, 4, 200.0), 0.3), each.describe())
"""


@pytest.mark.skipif(
    not compiled.build_folder().is_dir(), reason="`make compiled` builds these sources, and runs this"
)
def test_compiled_modules_give_the_same_runs_until_a_source_changes(tmp_path: Path) -> None:
    for name in ("engines", "calibrate", "sim", "experiments", "tests", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "results").symlink_to(ROOT / "results")
    shutil.copytree(compiled.build_folder(), tmp_path / compiled.build_folder().relative_to(ROOT))

    def ran(*arguments: str, **switch: str) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), **switch}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()

    with_build, without = ran("-c", DIGESTS), ran("-c", DIGESTS, **{compiled.SWITCH: "0"})
    assert with_build[0] == "True False"
    assert without[0] == "False True"
    assert with_build[1:] == without[1:]
    assert without[-1] == without[-2]
    with (tmp_path / "engines/policy/architecture.py").open("a") as file:  # not compiled, but compiled ones read it
        file.write("# changed\n")
    assert ran("-c", DIGESTS)[0] == "False True"
