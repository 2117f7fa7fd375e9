"""Kernels that overlap the one before them on their stream: programmatic dependent launch (CUDA programming guide).

Such a kernel starts while its predecessor still runs, and waits before it touches what that one makes. Every kernel
that is launched so must wait, since only that makes the order of all kernels that of the stream.
"""

from functools import cache

import torch
import triton
import triton.language as tl

LINE = 128  # bytes of a line of the second-level cache
HOPPER_SHARED_BYTES = 227 * 1024  # that one program may have


@triton.jit
def launch_dependents_and_wait(DEPENDENT: tl.constexpr):
    """Let the next kernel start, and wait for the one before."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def fence(DEPENDENT: tl.constexpr):
    """Let all that this thread has stored be seen everywhere, for kernels that start when this one ends and read it
    before they wait."""
    if DEPENDENT:
        tl.inline_asm_elementwise(
            "fence.acq_rel.gpu; mov.u32 $0, $1;", "=r,r", [tl.program_id(0)], tl.int32, False, 1
        )


@triton.jit
def prefetch_l2(pointers):
    """Bring the lines that these point to into the second-level cache. A hint: nothing waits for it."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, False, 1
    )


@cache
def supports_dependent_launch(device: torch.device) -> bool:
    """Whether kernels on a device can be launched so: Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def shared_bytes_of(device: torch.device) -> int:
    """Shared memory that one program may have, bytes; 0 where a device has none. PyTorch does not always tell; then
    what a Hopper or its successor for servers has, or what others have at least."""
    if device.type != "cuda":
        return 0
    server = torch.cuda.get_device_capability(device)[0] in (9, 10)
    known = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", None)
    return int(known or (HOPPER_SHARED_BYTES if server else 99 * 1024))


@cache
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors; 1 where a device has none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
