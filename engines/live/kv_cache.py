"""Keys and values of one model for every slot, in one tensor a layer."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from engines.errors import InputError


def layer_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """(layers, key-value heads, head dimension) of a decoder."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, head_dim


def bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Memory that the keys and values of one token take, all layers."""
    layers, heads, head_dim = layer_shape(config)
    return 2 * layers * heads * head_dim * dtype.itemsize


def positions_of(*configs: PretrainedConfig) -> int:
    """Tokens that all of these models can position. Raises InputError for a model that does not say, or whose number
    is none of tokens."""
    for config in configs:
        positions = getattr(config, "max_position_embeddings", None)
        if positions is None:
            remedy = "its config has no max_position_embeddings, which tells how long a context can be"
            raise InputError("pair", config.model_type, remedy)
        if isinstance(positions, bool) or not isinstance(positions, int) or positions < 1:
            remedy = f"not so many tokens can be positioned; put what the {config.model_type} model was trained for"
            raise InputError("max_position_embeddings", positions, f"{remedy} in its config.json")
    return min(int(config.max_position_embeddings) for config in configs)


def context_of(positions: int, max_draft_length: int, max_context: int | None = None) -> int:
    """Tokens of prompt and output that a slot is made for: max_context or, without it, what models that position
    `positions` tokens leave beside the drafts that may run past it. Raises InputError if there is no such room."""
    room = positions - max_draft_length - 1
    if room < 2:
        remedy = f"the models position {positions} tokens; use at most {positions - 3}"
        raise InputError("draft_length", max_draft_length, remedy)
    if max_context is None:
        return room
    if not 2 <= max_context <= room:
        remedy = f"use 2 to {room}: the models position {positions} tokens, drafts take {max_draft_length + 1}"
        raise InputError("max_context", max_context, remedy)
    return max_context


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
