"""Check that a GPU can run a kernel check."""

from __future__ import annotations

from importlib.util import find_spec

from engines.errors import InputError
from experiments.runner.preflight import check_live


def check_gpu(device: str = "cuda") -> None:
    """Raise InputError unless Triton kernels can be compiled and timed on this device."""
    if not device.startswith("cuda"):
        raise InputError("device", device, "the kernels need a GPU; use cuda or cuda:N")
    check_live("cpu")  # is torch there?
    import torch

    if not torch.cuda.is_available():
        raise InputError("device", device, "torch finds no GPU on this machine; run this on a machine with one")
    check_live(device)
    if find_spec("triton") is None:
        raise InputError("device", device, "the kernels need triton; install the extra: pip install 'pdv[cuda]'")


def check_shared_memory(needed: int) -> None:
    """Raise InputError unless a program may use this many bytes of the CUDA device's shared memory."""
    import torch

    from engines.live.kernels.dependent_launch import shared_bytes_of

    there = shared_bytes_of(torch.device("cuda", torch.cuda.current_device()))
    if there < needed:
        remedy = f"a program may use {there} bytes of its shared memory but needs {needed}; use a Hopper GPU or later"
        raise InputError("device", torch.cuda.get_device_name(), remedy)
