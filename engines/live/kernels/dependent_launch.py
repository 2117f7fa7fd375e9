"""Programmatic dependent launch: kernels that overlap the previous one on their stream (CUDA programming guide).

Such a kernel starts while its predecessor is still running, and waits before it reads what the predecessor writes.
Every kernel that is launched this way must wait, because nothing else keeps the kernels in stream order.
"""

from functools import cache

import torch
import triton
import triton.language as tl

LINE = 128  # bytes per line of the second-level cache
HOPPER_SHARED_BYTES = 227 * 1024  # limit per program


@triton.jit
def launch_dependents_and_wait(DEPENDENT: tl.constexpr):
    """Let the next kernel start, and wait for the previous one."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def fence(DEPENDENT: tl.constexpr):
    """Make all stores of this thread visible to the whole device.

    Needed if a later kernel, which starts when this one ends, reads them before it waits.
    """
    if DEPENDENT:
        tl.inline_asm_elementwise(
            "fence.acq_rel.gpu; mov.u32 $0, $1;", "=r,r", [tl.program_id(0)], tl.int32, False, 1
        )


@triton.jit
def prefetch_l2(pointers):
    """Prefetch the lines at these addresses into the second-level cache. This is a hint, and nothing waits for it."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, False, 1
    )


@cache
def supports_dependent_launch(device: torch.device) -> bool:
    """Return whether a device supports programmatic dependent launch (Hopper and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def shared_bytes_of(device: torch.device) -> int:
    """Return the shared memory that one program may use, in bytes; 0 on a CPU.

    PyTorch does not always report it. Then assume that of Hopper for Hopper and its successor for servers, and the
    least of all others for other devices.
    """
    if device.type != "cuda":
        return 0
    server = torch.cuda.get_device_capability(device)[0] in (9, 10)
    known = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", None)
    return int(known or (HOPPER_SHARED_BYTES if server else 99 * 1024))


@cache
def processors_of(device: torch.device) -> int:
    """Return the number of streaming multiprocessors; 1 for a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
