"""The host's settings while lanes run: the same when serving and when measuring."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SWITCH_INTERVAL_S = 2e-4  # Python's own, 5 ms, is as long as a stage


@contextmanager
def lane_settings(device: torch.device) -> Iterator[None]:
    """Let threads take turns quickly. On a CPU a lane computes with one thread, as a stream is one queue."""
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        torch.set_num_threads(threads)
