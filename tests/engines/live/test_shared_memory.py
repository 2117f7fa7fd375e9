"""Attention's largest launch, compiled for a Hopper without one, takes no more shared memory than a processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
HOPPER_BYTES, HOPPER_PROCESSORS = 227 * 1024, 132
LARGEST = (1, 16, 8, 128, 9)  # sequences, heads, key-value heads, head dimension, new tokens


def shared_bytes(dtype: torch.dtype, sequences: int, heads: int, kv_heads: int, head_dim: int, tokens: int) -> int:
    """Of one program, as the compiler says. For a process in which kernels are compiled and not interpreted."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from engines.live.kernels import decode_attention_triton

    decode_attention_triton.processors_of = lambda device: HOPPER_PROCESSORS
    pool, slots = torch.empty(2, 2048, kv_heads, head_dim, dtype=dtype), torch.zeros(sequences, dtype=torch.int64)
    attention = decode_attention_triton.DecodeAttention(slots, slots, tokens, heads, pool, 1.0)
    launch, number = attention.config, {2: "bf16", 4: "fp32"}[dtype.itemsize]
    constants = {
        "QUERIES": tokens, "GROUP": heads // kv_heads, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim,
        "SPLITS": attention.splits, "ROWS": attention._rows, "KEYS": launch.keys, "LINES": 2, "DEPENDENT": True,
    }  # fmt: skip
    types = {"slots": "*i64", "first": "*i64", "arrivals": "*i32", "scale": "fp32", "slot_stride": "i32"}
    types |= dict.fromkeys(("parts", "part_logs"), "*fp32") | dict.fromkeys(constants, "constexpr")
    names = decode_attention_triton._attend.arg_names
    signature = {name: types.get(name, f"*{number}") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    aligned = [n for n in names if signature[n].startswith("*") or n == "slot_stride"]
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(decode_attention_triton._attend, signature, places, hints)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return int(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared)


def test_the_largest_split_launch_fits_a_processor_in_float32() -> None:
    pytest.importorskip("triton", reason="triton is not installed, so its kernels are not compiled")
    compiled = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], env=compiled, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert HOPPER_BYTES / 2 < int(done.stdout) <= HOPPER_BYTES


if __name__ == "__main__":
    print(shared_bytes(torch.float32, *LARGEST))
