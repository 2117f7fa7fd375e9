"""The slot pool: keys and values of one model for every slot, in one tensor each per layer."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from engines.errors import InputError


def layer_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """Return (layers, key-value heads, head dimension) of a decoder.

    Raises InputError for a configuration that does not give them as one number for all layers.
    """
    heads = count_of(config, "num_attention_heads")
    kv_heads = count_of(config, "num_key_value_heads", heads)
    head_dim = getattr(config, "head_dim", None)
    width = count_of(config, "hidden_size") // heads if head_dim is None else count_of(config, "head_dim")
    return count_of(config, "num_hidden_layers"), kv_heads, width


def count_of(config: PretrainedConfig, name: str, default: int | None = None) -> int:
    """Return a number from a model's configuration, or the default if it has none.

    Raises InputError unless it is a whole number of at least 1.
    """
    try:
        value = getattr(config, name, None)
    except (NotImplementedError, TypeError):  # of configurations that compute it
        value = None
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        remedy = f"the config of {config.model_type} must have this as one number for all layers; use another model"
        raise InputError(name, value, remedy)
    return value


def bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of the keys and values of one token, over all layers."""
    layers, heads, head_dim = layer_shape(config)
    return 2 * layers * heads * head_dim * dtype.itemsize


def positions_of(*configs: PretrainedConfig) -> int:
    """Return how many tokens all of these models can position without changing how they position shorter sequences.

    Raises InputError for a model whose configuration has no valid number.
    """
    return min(_positions(config) for config in configs)


def _positions(config: PretrainedConfig) -> int:
    """Return max_position_embeddings or, with "longrope", the context of the original training.

    A longrope model changes all rotations as soon as one position lies beyond that context. The pool holds rotated
    keys of short and long requests alike, so it cannot follow.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        remedy = "its config has no max_position_embeddings, which limits the context; add it"
        raise InputError("pair", config.model_type, remedy)
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 1:
        remedy = f"not a number of positions; put the context that the {config.model_type} model was trained for"
        raise InputError("max_position_embeddings", positions, f"{remedy} in its config.json")
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(kind for kind in given.values() if isinstance(kind, dict))]  # per kind of layer
    changing = [kind for kind in kinds if kind.get("rope_type") == "longrope"]
    return min([positions, *(int(kind["original_max_position_embeddings"]) for kind in changing)])


class SlotPool:
    """Keys and values for a row of `row_length` tokens per slot, plus one scratch slot at the end.

    keys, values: one tensor per layer, [slots + 1, row_length, kv_heads, head_dim]. The scratch slot takes what
    nobody reads: the padding of a batch, and passes that only probe the model. positions: how many tokens the model
    can position.
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
