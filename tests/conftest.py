"""Settings of the whole suite."""

from __future__ import annotations

try:
    import torch
except ImportError:  # the simulator's tests run without
    pass
else:
    torch.set_num_threads(1)  # tiny models: threads that wait for each other only cost time on a busy machine
