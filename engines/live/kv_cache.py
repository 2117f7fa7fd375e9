"""Keys and values of one model for every slot, in one tensor a layer."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig


def layer_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """(layers, key-value heads, head dimension) of a decoder."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, head_dim


def bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Memory that the keys and values of one token take, all layers."""
    layers, heads, head_dim = layer_shape(config)
    return 2 * layers * heads * head_dim * dtype.itemsize


class SlotPool:
    """A row of `row_length` tokens for each slot, plus one scratch slot at the end.

    keys, values: one tensor a layer, [slots + 1, row_length, kv_heads, head_dim]. The scratch slot takes what
    nobody reads: padding of a batch, and passes that only look.
    """

    def __init__(
        self, config: PretrainedConfig, slots: int, row_length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        layers, heads, head_dim = layer_shape(config)
        shape = (slots + 1, row_length, heads, head_dim)
        self.row_length = row_length
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
