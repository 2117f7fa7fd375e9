"""Whatever happens to the files that a command reads: it succeeds, or says in one line why not, and loses nothing."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from engines.policy.architecture import PD
from experiments.cli import main
from experiments.compare.compare import compare
from experiments.figures import style
from experiments.sweep.config import Sweep
from experiments.sweep.sweep import run_sweep
from tests.experiments import synthetic
from tests.experiments.damage import copied, damage, picture

EXAMPLES = int(os.environ.get("PDV_EXAMPLES", "100"))
DEADLINE_S = 30  # of a command: many times what it takes
PROFILE, RUN = ("profile",), ("live/pdv-r1",)
COMMANDS: list[tuple[str, tuple[str, ...]]] = [  # each with the files and folders that it reads
    ("compare live simulated --out out/comparison.csv", ("live", "simulated")),
    ("compare live simulated --profile profile", ("live", "simulated", "profile")),
    ("trace live/pdv-r1 --out out/trace.json", RUN),
    ("simulate -p profile -c 2 -n 4 --out out/run", PROFILE),
    ("simulate -p profile -c 2 -n 4 --output-tokens 20 --acceptance tape --extrapolate --out out/run", PROFILE),
    ("simulate -p profile --replay live/pdv-r1 --out out/run", RUN),
    ("simulate -p profile --replay live/pdv-r1 --extrapolate --out out/run", (*RUN, *PROFILE)),
    ("simulate -p profile -a layout.toml -c 2 -n 4 --extrapolate --out out/run", ("layout.toml",)),
    ("simulate -p profile --trace trace.csv --extrapolate --out out/run", ("trace.csv",)),
    ("simulate -p profile --trace trace.jsonl --extrapolate --out out/run", ("trace.jsonl",)),
    ("experiment grid.toml --jobs 1 --out out/grid", ("grid.toml",)),
    ("experiment grid.toml --jobs 1 --out out/grid", ("grid.toml", "profile")),
]
REPORT = ("report errors swept bench --out out/report.html", ("errors", "swept", "bench"))
FIGURES = ("figures live simulated --profile profile --out out/figures", ("live", "simulated", "profile"))


class TooLong(BaseException):
    """A command was not done in time. No handler of errors takes it for one."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands read, whole."""
    return make_sound(tmp_path_factory.mktemp("sound"))


def make_sound(folder: Path) -> Path:
    live = synthetic.live("pdv", "pdv-r1", count=5)
    live.save(folder / "live" / "pdv-r1")
    synthetic.live("pd", "pd-r1", count=5).save(folder / "live" / "pd-r1")
    for name in ("pdv", "pd"):
        synthetic.simulated(name, count=5).save(folder / "simulated" / name)
    profile = synthetic.profile()
    profile.tapes = dict(live.tapes)
    profile.save(folder / "profile")
    (folder / "layout.toml").write_text(tomli_w.dumps(PD.replace(name="mine").to_dict()))
    grid: dict[str, Any] = {
        "name": "grid", "seed": 3, "concurrencies": [1, 2], "k": ["4"], "repeats": 1, "max_context": 500,
        "architectures": ["pdv", {"base": "pd", "name": "few", "slots": 2, "batch_limit": "draft+verify=2"}],
        "workload": {"requests": 3, "prompt_tokens": "16-32", "output_tokens": "8", "temperature": 0.5},
        "mode": "simulated", "profile": "profile", "acceptance": "0.8",
    }  # fmt: skip
    (folder / "grid.toml").write_text(tomli_w.dumps(grid))
    rows = [(0.0, 20, 8), (0.5, 30, 9), (0.5, 16, 4)]
    lines = [f'{{"timestamp": {t}, "prompt_tokens": {p}, "output_tokens": {o}}}\n' for t, p, o in rows]
    (folder / "trace.jsonl").write_text("".join(lines))
    cells = "".join(f"{t},{p},{o}\n" for t, p, o in rows)
    (folder / "trace.csv").write_text("timestamp,prompt_tokens,output_tokens\n" + cells)
    found = compare([live], [synthetic.simulated("pdv", count=5)])
    found.save(folder / "errors" / "comparison.csv")
    sweep = {"name": "swept", "profile": str(folder / "profile"), "architectures": ["pd"], "concurrencies": [1, 2],
             "repeats": 2, "acceptance": "0.8", "workload": grid["workload"]}  # fmt: skip
    run_sweep(Sweep.from_dict(sweep), folder / "swept", jobs=1)
    ceilings = {"copy_bytes_per_s": 1e12, "matrix_operations_per_s": 1e14}
    info = {
        "device": "none",
        "versions": {"torch": "2"},
        "ceilings": ceilings,
        "failures": [],
        "settings": {"seed": 0},
    }
    (folder / "bench").mkdir()
    (folder / "bench" / "bench.toml").write_text(tomli_w.dumps(info))
    (folder / "bench" / "engines.csv").write_text("architecture,clients,ttft_s.p95,checked,equal\npd,1,0.5,3,3\n")
    return folder


def unsaved(figure: Figure, folder: Path, name: str, source_line: str) -> list[Path]:
    """In the place of experiments.figures.style.save, which takes seconds, most of them for layout."""
    figure.supxlabel(source_line)
    return []


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(sound: Path, command: tuple[str, tuple[str, ...]], random: Random) -> tuple[int, str, list[str]]:
    """Exit code and standard error of a command whose files were damaged, and what was done to them. Raises
    AssertionError if the command changed or added anything outside its own output."""
    arguments, reads = command
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        folder = copied(sound, Path(place).resolve() / "work")
        os.chdir(folder)
        files = [p for name in reads for p in ([Path(name)] if Path(name).is_file() else Path(name).rglob("*.*"))]
        files = sorted(path for path in files if path.is_file())
        done = [damage(random.choice(files), files, random) for _ in range(random.choice((1, 1, 1, 2, 3)))]
        before = picture(folder, folder / "out")
        errors = io.StringIO()
        with (
            contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()), deadline(DEADLINE_S),
            mock.patch.object(style, "save", unsaved),
        ):  # fmt: skip
            code = main(arguments.split())
        assert picture(folder, folder / "out") == before, done
    return code, errors.getvalue(), done


def check(code: int, errors: str, done: list[str]) -> None:
    lines = errors.splitlines()
    if code == 0:
        assert lines == [], done
    else:  # 1: every request of a sound workload was refused, or the files ask for more than there is
        assert code in (1, 2), (errors, done)
        assert len(lines) == 1, (errors, done)
        assert lines[0].startswith("pdv: "), done


@settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(command=st.sampled_from([*COMMANDS * 3, REPORT, FIGURES]), random=st.randoms(use_true_random=False))
def test_damaged_files_get_one_line_or_do_not_matter(
    sound: Path, command: tuple[str, tuple[str, ...]], random: Random
) -> None:
    check(*outcome(sound, command, random))


@pytest.mark.parametrize("command", [command for command, _ in (*COMMANDS, REPORT)])
def test_sound_files_are_read(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(copied(sound, tmp_path / "work"))
    assert main(command.split()) == 0
