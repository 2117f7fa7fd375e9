"""The policy floor imports, and schedules, where torch is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
POLICY = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "engines").rglob("*.py")
    if path.stem != "__init__" and "live" not in path.relative_to(ROOT).parts
)

PROGRAM = f"""
import importlib, sys
for name in ("torch", "transformers", "safetensors", "tokenizers"):
    sys.modules[name] = None  # importing it raises ImportError
for name in {POLICY}:
    importlib.import_module(name)
from engines.policy.architecture import PDV
from engines.policy.scheduler import Scheduler
from engines.workload.workload import FixedLength, make_workload
from tests.driver import drive
workload = make_workload(3, FixedLength(5), FixedLength(5), rate=1.0)
print(drive(Scheduler(PDV), workload.requests).requests["output_tokens"].tolist())
"""


def test_the_policy_runs_without_torch() -> None:
    assert "engines.policy.scheduler" in POLICY
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[5, 5, 5]"
