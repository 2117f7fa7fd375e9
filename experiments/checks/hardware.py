"""What a check of kernels needs of the GPU."""

from __future__ import annotations

import importlib.util

import torch

from engines.errors import InputError


def check_kernels() -> None:
    """Raises InputError unless Triton's kernels can be compiled and timed here, on a CUDA device."""
    if not torch.cuda.is_available():
        raise InputError("device", "cuda", "torch finds no such device here; run this on a machine that has one")
    if importlib.util.find_spec("triton") is None:
        raise InputError("device", "cuda", "its kernels need triton; install the extra: pip install 'pdv[cuda]'")


def check_shared_memory(needed: int) -> None:
    """Raises InputError unless a program may have so many bytes of the CUDA device's shared memory."""
    from engines.live.kernels.dependent_launch import shared_bytes_of

    there = shared_bytes_of(torch.device("cuda", torch.cuda.current_device()))
    if there < needed:
        remedy = f"a program has {there} bytes of shared memory there and needs {needed}; use a Hopper GPU or later"
        raise InputError("device", torch.cuda.get_device_name(), remedy)
