"""What a model says through the slot pool is what it says by itself, or it is refused when it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MistralConfig

from engines.errors import InputError
from engines.live.model.attention import PackedBatch, UnservedAttentionError, forward, slot_pool_attention
from engines.live.model.kv_cache import SlotPool, layer_shape, positions_of
from engines.live.model.load_check import check_served, expected_logits
from engines.live.model.pairs import load_pair, make_pair
from engines.pairs.origin import EMBEDDED
from tests.engines.live.conftest import tiny_model


def test_a_context_ends_where_longrope_would_change_the_keys_of_all() -> None:
    """Beyond it, one long request would turn every short one beside it by other angles."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    rope |= {"original_max_position_embeddings": 32, "factor": 6.0}
    assert positions_of(tiny_model("llama", 1, rope_parameters=rope).config) == 32
    assert positions_of(tiny_model("llama", 1).config) == 192


class Shifted:
    """A forward that is right for one prompt alone, and turns all others by what the longest is longer."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, tokens: Tensor, batch: PackedBatch, keep: Tensor | None) -> Tensor:
        if not batch.uniform:
            batch.positions = torch.where(batch.positions < 4, batch.positions + 1, batch.positions)
        return forward(self.model, tokens, batch, keep)


class Deaf:
    """A forward whose later passes see nothing of the earlier ones."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, tokens: Tensor, batch: PackedBatch, keep: Tensor | None) -> Tensor:
        for pool in (*batch.pool.keys, *batch.pool.values):
            pool.zero_()
        return forward(self.model, tokens, batch, keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [Shifted, Deaf])
def test_a_wrong_pass_is_noticed_and_named(wrong: Any, dtype: torch.dtype) -> None:
    model = tiny_model("qwen3", 3).to(dtype).eval()
    expected = expected_logits("draft", model)
    model.set_attn_implementation("slot_pool")
    check_served("draft", model, lambda *call: forward(model, *call), expected)
    with pytest.raises(InputError, match=r"draft = 'qwen3': .*logits differ"):
        check_served("draft", model, wrong(model), expected)


def test_a_model_in_half_precision_is_not_refused_for_its_rounding() -> None:
    for kind in ("llama", "qwen3"):
        for dtype in (torch.bfloat16, torch.float16):
            make_pair("half", tiny_model(kind, 3).to(dtype), tiny_model(kind, 1).to(dtype))


@pytest.fixture
def call() -> Any:
    """A call of the attention function with one sequence of three tokens, and what else a model may ask for."""
    config = MistralConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64
    )
    pool = SlotPool(config, 1, 8, torch.device("cpu"), torch.float32)
    batch = PackedBatch(pool, torch.tensor([0]), torch.tensor([0]), 3)
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)

    def attend(mask: Tensor | None = None, **asked: Any) -> None:
        batch.attended.clear()
        slot_pool_attention(module, query, key, key, mask, packed_batch=batch, scaling=0.3, **asked)

    return attend


@pytest.mark.parametrize(
    "asked",
    [
        {"softcap": 50.0}, {"s_aux": torch.zeros(4)}, {"sliding_window": 63}, {"is_causal": False}, {"dropout": 0.1},
        {"position_bias": torch.zeros(1)}, {"head_mask": torch.ones(4)}, {"something_new": 1},
    ],
    ids=lambda asked: next(iter(asked)),
)  # fmt: skip
def test_attention_refuses_what_it_does_not_apply(call: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(UnservedAttentionError, match=next(iter(asked))):
        call(**asked)


def test_attention_refuses_a_mask_and_a_second_call_of_a_layer(call: Any) -> None:
    with pytest.raises(UnservedAttentionError, match="attention_mask"):
        call(torch.zeros(1))


@pytest.mark.parametrize(
    "asked",
    [
        {"softcap": None}, {"sliding_window": None}, {"sliding_window": 64}, {"is_causal": True}, {"dropout": 0.0},
        {"position_ids": torch.arange(3)}, {"use_cache": False},
    ],
)  # fmt: skip
def test_attention_takes_what_changes_nothing(call: Any, asked: dict[str, Any]) -> None:
    call(**asked)


@pytest.mark.parametrize("damage", [{"num_attention_heads": None}, {"num_key_value_heads": [2, 4]}])
def test_a_configuration_that_describes_no_decoder_is_refused(damage: dict[str, Any]) -> None:
    config = tiny_model("llama", 1).config
    for name, value in damage.items():
        object.__setattr__(config, name, value)
    with pytest.raises(InputError, match=next(iter(damage))):
        layer_shape(config)


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "pair"))


def test_weights_that_are_missing_or_unknown_or_of_another_shape_are_refused(embedded: Path) -> None:
    path = embedded / "draft" / "model.safetensors"
    weights = load_file(path)
    norm = "model.layers.0.input_layernorm.weight"
    changed = {
        "1 weights are missing .model.layers.0.input_layernorm": {n: w for n, w in weights.items() if n != norm},
        r"1 weights are unknown to the model .model.extra": {**weights, "model.extra.weight": torch.ones(2)},
        "1 weights are of another shape .model.layers.0.input_layernorm.weight.": {**weights, norm: torch.ones(3)},
    }
    for said, tensors in changed.items():
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(InputError, match=f"draft = .*{said}"):
            load_pair(embedded)
    save_file(weights, path, metadata={"format": "pt"})
    load_pair(embedded)


def test_a_damaged_tokenizer_is_refused(embedded: Path) -> None:
    path = embedded / "target" / "tokenizer.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"tokenizer = .*cannot be used"):
        load_pair(embedded)
    tokens = json.loads(whole)
    name, _ = max(tokens["model"]["vocab"].items(), key=lambda item: item[1])
    tokens["model"]["vocab"][name] = 5000
    path.write_text(json.dumps(tokens))
    with pytest.raises(InputError, match="has a token 5000, but the models' vocabulary has 264 tokens"):
        load_pair(embedded)
