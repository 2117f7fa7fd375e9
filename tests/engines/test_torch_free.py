"""The policy floor imports, and schedules, where torch is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
POLICY = sorted(f"engines.{path.stem}" for path in (ROOT / "engines").glob("*.py") if path.stem != "__init__")

PROGRAM = f"""
import importlib, sys
for name in ("torch", "transformers", "safetensors", "tokenizers"):
    sys.modules[name] = None  # importing it raises ImportError
for name in {POLICY}:
    importlib.import_module(name)
from engines.architecture import PDV
from engines.scheduler import Scheduler
from engines.workload import FixedLength, make_workload
from tests.driver import drive
workload = make_workload(3, FixedLength(5), FixedLength(5), rate=1.0)
print(drive(Scheduler(PDV), workload.requests).requests["output_tokens"].tolist())
"""


def test_the_policy_runs_without_torch() -> None:
    assert "engines.scheduler" in POLICY
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[5, 5, 5]"
