"""Build tiny decoders with random weights, for every family that transformers knows, and save them as pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from engines.live.serving.memory import count_parameters

MOST_PARAMETERS = 20_000_000
PERTURBATION = 0.15  # relative change of the weights from target to draft, so that drafts agree often but not always
VOCABULARY, POSITIONS = 131, 128
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "text_vocab_size": VOCABULARY,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), POSITIONS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "linear_num_value_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "qk_head_dim", "kv_lora_rank"), 16),
    "q_lora_rank": 24, "rotary_dim": 8, "attention_head_dim": 16, "time_step_rank": 4,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "decoder_ffn_dim", "d_ff"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "dff", "intermediate_size_mlp", "feed_forward_proj_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim"), 48),
    **dict.fromkeys(("mamba_d_head", "mamba_d_state", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(("hidden_size_per_layer_input", "global_head_dim"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    "num_routed_experts": 4,
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    "first_k_dense_replace": 1, "rnn_hidden_size": 64, "lru_width": 64, "attention_window_size": 32,
    "initializer_range": 0.02, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


OWN: dict[str, dict[str, Any]] = {  # settings that some families need to be consistent
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 16},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "zaya": {"num_experts_per_tok": 1},
}


def families() -> list[str]:
    """Return the model types that AutoModelForCausalLM can build, sorted."""
    made = {config.__name__ for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    return sorted(kind for kind, config in CONFIG_MAPPING.items() if config.__name__ in made)


def tiny_config(kind: str, changes: Mapping[str, Any]) -> PretrainedConfig:
    """Return the configuration of a family with every size in SMALL made small.

    Sizes that the family leaves open are set only if it cannot be built otherwise.
    """
    try:
        config = _shrunk(kind, changes, leave_open=True)
        count_parameters(config)
    except Exception:  # a family with odd sizes may raise anything
        config = _shrunk(kind, changes, leave_open=False)
    return config


def _shrunk(kind: str, changes: Mapping[str, Any], leave_open: bool) -> PretrainedConfig:
    plain = AutoConfig.for_model(kind)
    known = {name for name, value in plain.to_dict().items() if value is not None or not leave_open}
    known |= set(plain.attribute_map)
    given = {name: value for name, value in SMALL.items() if name in known}
    for short, long in plain.attribute_map.items():  # two names of one setting: keep one
        if short in given and long in given:
            del given[short]
    return AutoConfig.for_model(kind, **{**given, "use_cache": True, **OWN.get(kind, {}), **changes})


def tiny_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a float32 model in which every part affects the output.

    Products keep the scale of their input; norms and biases differ from their defaults. Raises ValueError if the
    model is too large.
    """
    parameters = count_parameters(config)
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"it has {parameters:,} parameters when made small")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def save_pair(model: PreTrainedModel, folder: Path) -> Path:
    """Save the model as the target of a pair, and a copy with perturbed weights as the draft."""
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder / "target")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + PERTURBATION * torch.randn_like(parameter))
    model.save_pretrained(folder / "draft")
    return folder
