"""Attention over the slot pool in plain PyTorch: the reference of engines.live.kernels.decode_attention_triton."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Sequences(Protocol):
    """The sequences of one model call. For shapes see engines.live.model.attention.PackedBatch."""

    slots: Tensor
    layout: Any
    longest: int

    @property
    def key_length(self) -> int: ...

    @property
    def padded(self) -> Tensor: ...

    def mask(self, dtype: torch.dtype) -> Tensor: ...


def attend_gathered(query: Tensor, keys: Tensor, values: Tensor, batch: Sequences, scale: float) -> Tensor:
    """Attend by gathering each sequence's keys and values, padding the queries to one length, and masking.

    Works on every device, and is fast on CPUs. query: [tokens, heads, head_dim]. keys, values: [slots + 1,
    row_length, kv_heads, head_dim]. Returns [tokens, heads, head_dim].
    """
    size, longest, length = len(batch.slots), batch.longest, batch.key_length
    q = query.view(size, longest, *query.shape[1:]) if batch.layout is None else query[batch.padded]
    k, v = keys[:, :length][batch.slots], values[:, :length][batch.slots]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=batch.mask(q.dtype), scale=scale, enable_gqa=grouped)
    out = out.transpose(1, 2)
    return out.reshape(query.shape) if batch.layout is None else out[batch.layout.owner, batch.layout.offset]
