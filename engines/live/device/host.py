"""The host's side of a device: its settings while lanes run, and numbers on their way there and back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

Numbers = Sequence[int] | np.ndarray  # whole ones
SWITCH_INTERVAL_S = 2e-4  # Python's own, 5 ms, is as long as a stage

_guard, _contexts = threading.Lock(), 0  # contexts of `lane_settings` that are open


@contextmanager
def lane_settings(device: torch.device) -> Iterator[None]:
    """Let threads take turns quickly. On a CPU a lane computes with one thread, as a stream is one queue.

    cuBLAS keeps a workspace of 32 MiB per stream on a Hopper GPU, which captured graphs use. All are freed when the
    last context of the process is left.
    """
    global _contexts
    with _guard:
        _contexts += 1
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        torch.set_num_threads(threads)
        with _guard:
            _contexts -= 1
            if not _contexts and device.type == "cuda":
                torch._C._cuda_clearCublasWorkspaces()


def staged(values: Numbers, device: torch.device) -> Tensor:
    """Numbers as int64 on the host, where a device can fetch them by itself."""
    host = torch.empty(len(values), dtype=torch.int64, pin_memory=device.type == "cuda")
    host.numpy()[:] = values  # Tensor.pin_memory() asks the driver about the memory first, which takes longer
    return host


def to_device(values: Numbers, device: torch.device) -> Tensor:
    """Host numbers as int64 on the device, in the stream's order and without waiting for it."""
    return staged(values, device).to(device, non_blocking=True)


def to_host(result: Tensor) -> Tensor:
    """A copy on the host, complete once the stream has passed this point."""
    if not result.is_cuda:
        return result.clone()
    host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
    return host.copy_(result, non_blocking=True)
