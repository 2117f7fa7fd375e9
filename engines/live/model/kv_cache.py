"""Keys and values of one model for every slot, in one tensor a layer."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from engines.errors import InputError


def layer_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """(layers, key-value heads, head dimension) of a decoder. Raises InputError for a configuration that does not
    say them, once for all layers."""
    heads = count_of(config, "num_attention_heads")
    kv_heads = count_of(config, "num_key_value_heads", heads)
    head_dim = getattr(config, "head_dim", None)
    width = count_of(config, "hidden_size") // heads if head_dim is None else count_of(config, "head_dim")
    return count_of(config, "num_hidden_layers"), kv_heads, width


def count_of(config: PretrainedConfig, name: str, default: int | None = None) -> int:
    """A number of a model's configuration, or the default where there is none. Raises InputError unless it is a whole
    number of at least 1."""
    try:
        value = getattr(config, name, None)
    except (NotImplementedError, TypeError):  # of configurations that work it out
        value = None
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        remedy = f"the config of {config.model_type} must have it, as a number for all layers; use another model"
        raise InputError(name, value, remedy)
    return value


def bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Memory that the keys and values of one token take, all layers."""
    layers, heads, head_dim = layer_shape(config)
    return 2 * layers * heads * head_dim * dtype.itemsize


def positions_of(*configs: PretrainedConfig) -> int:
    """Tokens that all of these models can position, each as it would alone. Raises InputError for a model that does
    not say, or whose number is none of tokens."""
    return min(_positions(config) for config in configs)


def _positions(config: PretrainedConfig) -> int:
    """max_position_embeddings, or what a model was first trained for where all its rotations change as soon as one
    position lies beyond that ("longrope"): a pool holds keys that are rotated already, for short requests and long
    ones."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        remedy = "its config has no max_position_embeddings, which tells how long a context can be"
        raise InputError("pair", config.model_type, remedy)
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 1:
        remedy = f"not so many tokens can be positioned; put what the {config.model_type} model was trained for"
        raise InputError("max_position_embeddings", positions, f"{remedy} in its config.json")
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(kind for kind in given.values() if isinstance(kind, dict))]  # of each kind of layer
    changing = [kind for kind in kinds if kind.get("rope_type") == "longrope"]
    return min([positions, *(int(kind["original_max_position_embeddings"]) for kind in changing)])


class SlotPool:
    """A row of `row_length` tokens for each slot, plus one scratch slot at the end.

    keys, values: one tensor a layer, [slots + 1, row_length, kv_heads, head_dim]. The scratch slot takes what
    nobody reads: padding of a batch, and passes that only look. positions: no row of this model is ever longer.
    """

    def __init__(
        self, config: PretrainedConfig, slots: int, row_length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        layers, heads, head_dim = layer_shape(config)
        shape = (slots + 1, row_length, heads, head_dim)
        self.row_length = row_length
        self.positions = positions_of(config)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
