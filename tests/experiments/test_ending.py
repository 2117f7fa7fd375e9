"""Every program ends with an exit code and one line, whatever happens in it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import InputError
from experiments.program.ending import ended_by
from tests.experiments import synthetic

ROOT = Path(__file__).parents[2]


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("rate", -1, "use a number above 0"), 2, "pdv: rate = -1: use a number above 0"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "pdv: No space left on device"),
        (OSError(errno.EMFILE, "Too many open files", "a"), 1, "pdv: a: Too many open files"),
        (OSError("a folder that is not there"), 1, "pdv: a folder that is not there"),
        (PermissionError(errno.EACCES, "Permission denied", "a\nb"), 1, "pdv: a b: Permission denied"),
        (MemoryError(), 1, "pdv: out of memory; use fewer requests, tokens or points"),
        (KeyboardInterrupt(), 130, "pdv: interrupted"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, None),
    ],
)
def test_an_error_becomes_a_code_and_a_line(
    error: BaseException, code: int, line: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(lambda: raising(error), "pdv") == code
    assert capsys.readouterr().err.splitlines() == ([] if line is None else [line])


@pytest.mark.parametrize("error", [KeyError("a"), RecursionError("deep"), OverflowError("large"), AssertionError()])
def test_a_bug_is_one_line_and_its_traceback_is_kept(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert ended_by(lambda: raising(error), "pdv") == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pdv: this is a bug, please report it: {type(error).__name__}")
    (kept,) = tmp_path.iterdir()
    assert str(kept) in line
    assert "in raising" in kept.read_text()


def processed(command: str, folder: Path) -> tuple[int, str]:
    """Exit code and standard error of a shell's command line; `pdv` is the program."""
    pdv = f"{sys.executable} -m experiments.cli"
    script = f"set -o pipefail; cd {ROOT}; {command.replace('pdv', pdv).format(folder=folder)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


def test_a_full_disk_and_a_reader_that_has_left(tmp_path: Path) -> None:
    """Both show only when the buffer of standard output is written, at the end."""
    synthetic.simulated(count=4).save(tmp_path / "run")
    assert processed("pdv trace {folder}/run > /dev/full", tmp_path) == (1, "pdv: No space left on device\n")
    assert processed("pdv trace {folder}/run | true", tmp_path) == (1, "")
