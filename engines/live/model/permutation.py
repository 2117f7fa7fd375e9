"""Build the models of a permutation pair on the device, in their dtype, without loading anything.

Embeddings are standard normal, and row pi(i) of the output matrix is the embedding of token i over sqrt(hidden size),
which keeps logits small and changes no argmax. After token t, the last hidden state is norm(e_t + r), where r is what
the layers add. Its logit for token pi(t) is about sqrt(hidden) / sqrt(1 + |r|^2 / |e_t|^2). All other logits are
about standard normal, since random directions are nearly orthogonal.

How large is r? Linear weights are normal with variance 1 / fan-in. A layer's gated MLP then adds about 0.6 of an
embedding's length, and its attention, which averages over the context, somewhat less. Both are multiplied by the
layer scale s, so |r| / |e_t| is about 0.7 s sqrt(layers). At s = 0.05 and 32 layers this is a fifth: small, but far
from zero. The right token then has a logit of 60 at a hidden size of 4096 (30 at 1024), while the largest wrong one
over all pairs of 151,936 tokens is about sqrt(4 ln 151,936) = 7. bfloat16 rounds these by less than one part in a
hundred.

At full scale (s = 1), wide models still follow the permutation: with a hidden size of 4096 and 32 layers, the right
token has a logit of 15. The worst token, early in a sequence where attention averages over few tokens, has about half
of the mean logit; hence LEAST_MARGIN. Measured at hidden sizes of 256 to 1536, the mean is within a tenth of this
estimate up to s = 0.3, and 12% below it at s = 1.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from engines.pairs.permutation import PermutationSpec, make_cycle
from engines.pairs.shapes import ModelShape

OUTPUT_PROJECTIONS = ("o_proj", "down_proj")


def shape_config(shape: ModelShape, tie_word_embeddings: bool | None = None) -> PretrainedConfig:
    """Return the transformers configuration of a shape. `tie_word_embeddings` overrides the published setting."""
    settings = {"tie_word_embeddings": False, **shape.settings}
    if tie_word_embeddings is not None:
        settings["tie_word_embeddings"] = tie_word_embeddings
    return AutoConfig.for_model(shape.model_type, **settings)


def pair_configs(spec: PermutationSpec) -> tuple[PretrainedConfig, PretrainedConfig]:
    """Return the configurations of target and draft, with untied embeddings: the output matrix is the permutation."""
    return shape_config(spec.target_shape, False), shape_config(spec.draft_shape, False)


def build_models(
    spec: PermutationSpec, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Build the target and the draft of a spec on the device."""
    cycle = make_cycle(spec)
    target, draft = pair_configs(spec)
    return (
        _build(target, cycle.order, cycle.target_next, spec, 1, device, dtype),
        _build(draft, cycle.order, cycle.draft_next, spec, 2, device, dtype),
    )


def embedding_weights(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input embeddings and output matrix, [vocabulary, hidden] each; the same tensor if they are tied."""
    weights = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return cast("tuple[torch.Tensor, torch.Tensor]", weights)


def _build(
    config: PretrainedConfig, tokens: np.ndarray, following: np.ndarray, spec: PermutationSpec, role: int,
    device: torch.device, dtype: torch.dtype,
) -> PreTrainedModel:  # fmt: skip
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator(device).manual_seed(2 * spec.seed + role)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                scale = spec.layer_scale if name.rpartition(".")[2] in OUTPUT_PROJECTIONS else 1.0
                module.weight.normal_(0.0, scale * module.in_features**-0.5, generator=generator)
        _permute(model, torch.from_numpy(tokens).to(device), torch.from_numpy(following).to(device), generator)
    return model.eval()


def _permute(
    model: PreTrainedModel, tokens: torch.Tensor, following: torch.Tensor, generator: torch.Generator
) -> None:
    """Make the model pick following[i] after tokens[i]. Special tokens act like tokens[0] and are never picked."""
    embeddings, rows = embedding_weights(model)
    embeddings.normal_(generator=generator)
    special = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
    special[tokens] = False
    embeddings[special] = embeddings[tokens[0]].clone()
    rows.zero_()
    rows[following] = embeddings[tokens] * embeddings.shape[1] ** -0.5
