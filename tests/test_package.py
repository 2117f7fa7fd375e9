"""`import pdv` is enough for a prediction, and needs neither torch nor a library that draws."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pdv

ROOT = Path(__file__).parents[1]
ALONE = "import sys; sys.modules['torch'] = None; sys.modules['matplotlib'] = None\n"


def test_the_script_of_the_docstring_runs_without_torch_and_matplotlib() -> None:
    script = textwrap.dedent((pdv.__doc__ or "").split("\n\n", 1)[1].rsplit("\n\n", 1)[0])
    done = subprocess.run(
        [sys.executable, "-c", ALONE + script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    throughput, _, parts = done.stdout.partition("\n")
    assert float(throughput) > 0
    assert "verify_queue" in parts


def test_every_name_that_is_offered_is_there() -> None:
    assert all(hasattr(pdv, name) for name in pdv.__all__)
