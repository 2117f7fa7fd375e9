"""Settings that must be made before anything is imported."""

import os
import shutil

if shutil.which("nvidia-smi") is None:  # no GPU to run Triton's kernels: interpret them
    os.environ.setdefault("TRITON_INTERPRET", "1")
