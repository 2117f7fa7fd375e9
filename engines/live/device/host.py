"""Host settings while lanes run, and copies of numbers between host and device."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

Numbers = Sequence[int] | np.ndarray  # whole numbers
SWITCH_INTERVAL_S = 2e-4  # Python's default of 5 ms is as long as a stage

_guard, _contexts = threading.Lock(), 0  # number of open contexts of `lane_settings`


@contextmanager
def lane_settings(device: torch.device) -> Iterator[None]:
    """Let threads switch quickly and, on a CPU, let each lane compute with one thread, as a stream is one queue.

    On a Hopper GPU, cuBLAS keeps a workspace of 32 MiB per stream, which captured graphs use. All workspaces are
    freed when the last context of the process exits.
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
    """Return numbers as int64 on the host, in pinned memory if they are for a GPU."""
    host = torch.empty(len(values), dtype=torch.int64, pin_memory=device.type == "cuda")
    host.numpy()[:] = values  # Tensor.pin_memory() is slower: it first asks the driver about the memory
    return host


def to_device(values: Numbers, device: torch.device) -> Tensor:
    """Copy numbers to the device as int64, in stream order and without waiting for the stream."""
    return staged(values, device).to(device, non_blocking=True)


def to_host(result: Tensor) -> Tensor:
    """Copy a tensor to the host. The copy is complete once the stream has passed this point."""
    if not result.is_cuda:
        return result.clone()
    host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
    return host.copy_(result, non_blocking=True)
