"""Operations of a fused decoder between its matrix products, for any number of tokens.

The functions are plain PyTorch, and define the Triton kernels of the same names, which replace them for CUDA tensors.
They round where transformers does, so a fused pass differs from a pass of transformers only through its matrix
products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def add_rms_norm(hidden: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `hidden` (unless None) to `residual` in place, and return the root-mean-square norm of the sum.

    hidden, residual: [tokens, width], contiguous; weight: [width]. Returns [tokens, width].
    """
    if residual.is_cuda:
        from engines.live.kernels import elementwise_triton

        return elementwise_triton.add_rms_norm(hidden, residual, weight, eps)
    if hidden is not None:
        residual.add_(hidden)
    return _rms_norm(residual, weight, eps)


def rotate_and_store(
    qkv: Tensor, rotations: Tensor, head_norms: Tensor | None, eps: float, rows: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Rotate queries and keys by their positions, and write keys and values to their rows of the pool.

    qkv: [tokens, (heads + 2 kv_heads) * head_dim], contiguous: all heads' queries, then keys, then values.
    rotations: [tokens, head_dim], the cosines of each position's angles, then their sines. head_norms:
    [heads + kv_heads, head_dim], weights of a root-mean-square norm per query and key head, None if there is none.
    rows: [tokens] int64, rows of the flattened pool. keys, values: [slots + 1, row_length, kv_heads, head_dim].
    Returns the queries, [tokens, heads, head_dim], contiguous.
    """
    if qkv.is_cuda:
        from engines.live.kernels import elementwise_triton

        return elementwise_triton.rotate_and_store(qkv, rotations, head_norms, eps, rows, keys, values)
    kv_heads, head_dim = keys.shape[-2:]
    heads = qkv.view(len(qkv), -1, head_dim)
    turning, value = heads[:, :-kv_heads], heads[:, -kv_heads:]
    if head_norms is not None:
        turning = _rms_norm(turning, head_norms, eps)
    cos, sin = rotations[:, None].chunk(2, dim=-1)
    x, y = turning.chunk(2, dim=-1)
    turned = torch.cat([x * cos - y * sin, y * cos + x * sin], dim=-1)
    keys.flatten(0, 1).index_copy_(0, rows, turned[:, -kv_heads:])
    values.flatten(0, 1).index_copy_(0, rows, value)
    return turned[:, :-kv_heads].contiguous()


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, [tokens, width]. gate_up: [tokens, 2 * width], contiguous: gate, then up."""
    if gate_up.is_cuda:
        from engines.live.kernels import elementwise_triton

        return elementwise_triton.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate).mul_(up)
