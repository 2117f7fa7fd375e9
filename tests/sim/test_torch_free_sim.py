"""Profiles are read, and runs are simulated, where torch is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.calibrate.profiles import made_up

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "safetensors", "tokenizers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoTorch())
import sim
from calibrate.profile import Profile
from engines.policy.architecture import PDV
from engines.workload.workload import FixedLength, make_workload
from sim.acceptance_fits import from_profile
from sim.engine import simulate
profile = Profile.load(sys.argv[1])
run = simulate(PDV, make_workload(3, FixedLength(50), FixedLength(5), concurrency=2), profile, from_profile(profile))
print(run.requests["output_tokens"].tolist())
import torch
"""


def test_a_profile_is_simulated_without_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(made_up().save(tmp_path))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[5, 5, 5]", done.stderr
    assert done.stderr.strip().endswith("ModuleNotFoundError: torch")  # and the blocker does block
