"""Settings of the whole suite; the first must be made before anything is imported."""

from __future__ import annotations

import os
import shutil

from hypothesis import HealthCheck, Phase, settings

if shutil.which("nvidia-smi") is None:  # no GPU to run Triton's kernels: interpret them, where Triton is installed
    os.environ.setdefault("TRITON_INTERPRET", "1")

try:
    import torch
except ImportError:  # the simulator's tests run without
    pass
else:
    torch.set_num_threads(1)  # tiny models: threads that wait for each other only cost time on a busy machine

# for docs/mutation-testing.md: a failure need not be shrunk, nor remembered
settings.register_profile(
    "quick",
    max_examples=10,
    phases=[Phase.explicit, Phase.generate],
    database=None,
    suppress_health_check=list(HealthCheck),
)
