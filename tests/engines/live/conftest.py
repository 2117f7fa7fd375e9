"""Tiny pairs of real transformers models, built here, saved and loaded from disk like any other pair."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engines.live.model.pairs import Pair, load_pair
from engines.policy.request import Request

VOCABULARY, ENDS = 61, [3, 8, 20, 30, 45]  # several, so that some outputs do end early
KINDS = ("llama", "qwen3")  # that pairs are made of
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}


def tiny_model(kind: str, layers: int, **changes: object) -> PreTrainedModel:
    """A decoder with random weights; the same seed gives a draft the same first layer as its target."""
    torch.manual_seed(11)
    model_class, config_class = FAMILIES[kind]
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 192,
        "initializer_range": 0.4, "eos_token_id": ENDS, "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    return model_class(config_class(**{**settings, **changes})).float().eval()


def save_pair(kind: str, folder: Path) -> Path:
    """A target of three layers, and a draft made of its embeddings and first layer, which agrees with it often
    because the target's later layers say little."""
    target, draft = tiny_model(kind, 3), tiny_model(kind, 1)
    with torch.no_grad():
        for layer in target.model.layers[1:]:
            layer.self_attn.o_proj.weight *= 0.25
            layer.mlp.down_proj.weight *= 0.25
        draft.load_state_dict(target.state_dict(), strict=False)
    target.save_pretrained(folder / "target")
    draft.save_pretrained(folder / "draft")
    return folder


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_pair(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="session", params=sorted(KINDS))
def pair(request: pytest.FixtureRequest, pair_folders: dict[str, Path]) -> Pair:
    return load_pair(pair_folders[request.param])


@pytest.fixture(scope="session")
def llama(pair_folders: dict[str, Path]) -> Pair:
    return load_pair(pair_folders["llama"])


def random_requests(count: int, seed: int = 3, longest: int = 40, **options: object) -> tuple[Request, ...]:
    """Requests with random prompts of 1 to `longest` tokens and limits of 1 to `longest`."""
    rng = random.Random(seed)
    requests = []
    for i in range(count):
        prompt = tuple(rng.randrange(4, VOCABULARY) for _ in range(rng.randint(1, longest)))
        requests.append(Request(i, len(prompt), rng.randint(1, longest), prompt=prompt, **options))  # type: ignore[arg-type]
    return tuple(requests)
