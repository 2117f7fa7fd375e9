"""Run a decoder of the Llama family as a few large kernels.

The weights are those of a transformers model. A pass over a packed batch uses one matrix product for queries, keys
and values, one for gate and up, and one kernel for each operation between the products (engines.live.kernels.passes).
If the pass has few tokens, the products do these operations as well (engines.live.kernels.skinny_gemm).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from engines.live.kernels.passes import Pass, Product, WidePass
from engines.live.model.attention import PackedBatch, attends_fully, attention_over

FAMILY = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # frequencies do not depend on sequence length


class Layer(NamedTuple):
    """The weights of one decoder layer. head_norms: [heads + kv_heads, head_dim], None if it has no such norms."""

    input_norm: Tensor
    qkv: Product
    head_norms: Tensor | None
    output: Product
    mlp_norm: Tensor
    gate_up: Product
    down: Product


def supports(model: PreTrainedModel) -> bool:
    """Return whether FusedDecoder supports a model. If not, run the model itself."""
    if type(model) not in FAMILY or not attends_fully(model.config) or model.config.hidden_act != "silu":
        return False
    rotary, head_dim = model.model.rotary_emb, model.model.layers[0].self_attn.head_dim
    if rotary.rope_type not in STATIC_ROPE or 2 * len(rotary.inv_freq) != head_dim:
        return False
    plain = all(type(module) is nn.Linear for name, module in model.named_modules() if name.endswith("_proj"))
    uniform = len({(p.dtype, p.device) for p in model.parameters()}) == 1
    return plain and uniform and head_dim & (head_dim - 1) == 0  # the kernels' tiles are powers of two


class FusedDecoder:
    """Run one pass of a model over a packed batch. Equals engines.live.model.attention.forward up to rounding.

    The model's parameters become views of the joined weights. The model still works, and no weight is held twice, but
    neither may be moved to another device or dtype afterwards.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config, decoder = model.config, model.model
        self._eps = float(config.rms_norm_eps)
        self._heads = int(config.num_attention_heads)
        self._scale = float(decoder.layers[0].self_attn.scaling)
        with torch.no_grad():
            self._embedding = decoder.embed_tokens.weight.data
            self._layers = [_layer(layer) for layer in decoder.layers]
            self._norm = decoder.norm.weight.data
            self._head = _join([model.lm_head])
            self._rotations = _rotations(decoder.rotary_emb, int(config.max_position_embeddings), self._embedding)
        products = [p for layer in self._layers for p in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        shaped = all(product.weight.shape[1] % 64 == 0 for product in products)
        shaped &= int(decoder.layers[0].self_attn.head_dim) >= 16
        self._narrow = False
        if self._embedding.is_cuda:
            from engines.live.kernels.dependent_launch import (
                HOPPER_SHARED_BYTES,
                shared_bytes_of,
                supports_dependent_launch,
            )

            device = self._embedding.device
            roomy = supports_dependent_launch(device) and shared_bytes_of(device) >= HOPPER_SHARED_BYTES
            # float16 might overflow with a residual before its norm
            self._narrow = shaped and roomy and self._embedding.dtype is torch.bfloat16
            torch.cuda.empty_cache()  # so that the memory of the separate weights counts as free when a pool is sized

    def __call__(self, tokens: Tensor, batch: PackedBatch, keep: Tensor | None) -> Tensor:
        """Return the logits of one pass, [kept, vocabulary].

        tokens: [tokens] int64. keep: places in the packed row whose logits are wanted, None for all.
        """
        pool, rotations = batch.pool, self._rotations[batch.positions]
        attend = attention_over(batch, self._heads, self._scale)
        flow = self._start(tokens)
        norms = [layer.input_norm for layer in self._layers[1:]] + [self._norm]
        for layer, next_norm, keys, values in zip(self._layers, norms, pool.keys, pool.values, strict=True):
            query = flow.queries(layer.qkv, layer.head_norms, rotations, batch.rows, keys, values)
            attended = attend(query, keys, values).flatten(1)
            if keep is not None and layer is self._layers[-1]:  # the pool is complete; what follows only makes logits
                attended = attended[keep]
                flow.keep(keep)
            flow.add(attended, layer.output, layer.mlp_norm)
            flow.add(flow.gate(layer.gate_up), layer.down, next_norm)
        return flow.project(self._head)

    def _start(self, tokens: Tensor) -> Pass:
        first = (tokens, self._embedding, self._layers[0].input_norm, self._eps)
        if self._narrow:
            from engines.live.kernels.skinny_gemm import MOST_TOKENS, SkinnyPass

            if len(tokens) <= MOST_TOKENS:
                return SkinnyPass(*first)
        return WidePass(*first)


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    head_norms = None
    if hasattr(attention, "q_norm"):
        normed = ((attention.q_norm, attention.q_proj), (attention.k_norm, attention.k_proj))
        counts = [projection.out_features // attention.head_dim for _, projection in normed]
        head_norms = torch.cat([n.weight.data.expand(c, -1) for (n, _), c in zip(normed, counts, strict=True)])
    return Layer(
        layer.input_layernorm.weight.data,
        _join([attention.q_proj, attention.k_proj, attention.v_proj]),
        head_norms,
        _join([attention.o_proj]),
        layer.post_attention_layernorm.weight.data,
        _join([mlp.gate_proj, mlp.up_proj]),
        _join([mlp.down_proj]),
    )


def _join(linears: Sequence[nn.Linear]) -> Product:
    """Join linear layers that read the same input into one product."""
    biases = [each.bias for each in linears if each.bias is not None]
    return Product(_stack([each.weight for each in linears]), _stack(biases) if biases else None)


def _stack(parameters: Sequence[Tensor]) -> Tensor:
    """Return one tensor, along the first axis, of which the parameters become views.

    If they already are, as in a model that is fused twice, return the existing tensor.
    """
    first, sizes = parameters[0], [len(parameter) for parameter in parameters]
    storages = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    if len(storages) == 1 and all(a.data_ptr() + a.nbytes == b.data_ptr() for a, b in pairwise(parameters)):
        return first.data.as_strided((sum(sizes), *first.shape[1:]), first.stride())
    stacked = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, stacked.split(sizes), strict=True):
        parameter.data = part
    return stacked


def _rotations(rotary: nn.Module, positions: int, like: Tensor) -> Tensor:
    """Return cosines, then sines, of each position's angles, [positions, head_dim], rounded as in the model."""
    cos, sin = rotary(like, torch.arange(positions, device=like.device)[None])
    half = cos.shape[-1] // 2
    return torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=-1)
