"""A fused pass gives the logits, and leaves the pool, that a pass of the transformers model does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from engines.live.model.attention import NAME, Layout, PackedBatch, forward
from engines.live.model.fused import FusedDecoder, supports
from engines.live.model.kv_cache import SlotPool
from engines.live.model.pairs import make_pair
from tests.engines.live.conftest import VOCABULARY, tiny_model

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "grouped queries": ("llama", {}),
    "all heads": ("llama", {"num_key_value_heads": 4}),
    "tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3 positions": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear positions": (
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}
    ),
    "yarn positions": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0,
                             "original_max_position_embeddings": 48}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"num_key_value_heads": 1}),
}  # fmt: skip
Forward = Callable[[Tensor, PackedBatch, Tensor | None], Tensor]
SLOTS, ROW_LENGTH = 6, 48


def random_model(kind: str, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """Every weight random: biases that are zero and norms that are one would hide mistakes."""
    model = tiny_model(kind, 3, **changes)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.3)
    model.set_attn_implementation(NAME)
    return model.to(dtype).requires_grad_(False)


def filled_pool(model: PreTrainedModel) -> SlotPool:
    """A pool whose rows all differ, so that reading the wrong one shows."""
    pool = SlotPool(model.config, SLOTS, ROW_LENGTH, model.device, model.dtype)
    generator = torch.Generator().manual_seed(5)
    for table in (*pool.keys, *pool.values):
        table.copy_(torch.randn(table.shape, generator=generator))
    return pool


def passes(forward: Forward, pool: SlotPool) -> list[Tensor]:
    """The logits of what an engine does with three requests: a packed prefill, drafting, verifying."""
    slots, generator = torch.tensor([4, 0, 3]), torch.Generator().manual_seed(6)

    def run(first: list[int], counts: int | list[int], keep_last: bool = False) -> Tensor:
        layout = counts if isinstance(counts, int) else Layout.of(counts, slots.device)
        batch = PackedBatch(pool, slots, torch.tensor(first), layout)
        tokens = torch.randint(VOCABULARY, (len(batch.rows),), generator=generator)
        return forward(tokens, batch, batch.last if keep_last else None)

    prefill = run([0, 0, 0], [7, 2, 19], keep_last=True)
    two_tokens, one_token, verify = run([5, 0, 17], 2), run([7, 2, 19], 1), run([6, 1, 18], 5)
    return [prefill, two_tokens, one_token, verify]


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_pool_equal_those_of_transformers(name: str) -> None:
    kind, changes = MODELS[name]
    model = random_model(kind, **changes)
    assert supports(model)
    pools = [filled_pool(model) for _ in range(3)]
    plain = passes(partial(forward, model), pools[0])
    fused = passes(FusedDecoder(model), pools[1])
    joined = passes(partial(forward, model), pools[2])  # the model itself, its weights parts of the joined ones
    for a, b, c in zip(plain, fused, joined, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)
        assert torch.equal(a.argmax(-1), b.argmax(-1))
        assert torch.equal(a, c)
    for table in ("keys", "values"):
        for a, b in zip(getattr(pools[0], table), getattr(pools[1], table), strict=True):
            torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_bfloat16_rounds_where_transformers_does(kind: str) -> None:
    model = random_model(kind, torch.bfloat16)
    plain = passes(partial(forward, model), filled_pool(model))
    fused = passes(FusedDecoder(model), filled_pool(model))
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(b.float(), a.float(), atol=0.03 * float(a.float().std()), rtol=0.03)


@pytest.mark.parametrize("wrong", ["first", "slots"])
def test_a_wrong_length_or_slot_shows(wrong: str) -> None:
    model = random_model("llama")
    decoder = FusedDecoder(model)

    def verify(**changes: list[int]) -> Tensor:
        settings = {"slots": [4, 0, 3], "first": [9, 20, 14]} | changes
        batch = PackedBatch(filled_pool(model), *(torch.tensor(settings[name]) for name in ("slots", "first")), 3)
        return decoder(torch.arange(9), batch, None)

    right = verify()
    mistaken = verify(**{wrong: {"first": [9, 19, 14], "slots": [4, 1, 3]}[wrong]})
    assert torch.allclose(mistaken[:3], right[:3], atol=1e-5)
    assert not torch.allclose(mistaken[3:6], right[3:6], atol=0.05)


def test_weights_are_held_once() -> None:
    model = random_model("llama")
    bytes_before = sum(p.nbytes for p in model.parameters())
    FusedDecoder(model)
    again = FusedDecoder(model)  # another pair with the same model
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(storages.values()) == bytes_before
    held = [again._layers[1].qkv.weight, again._layers[1].gate_up.weight, again._head.weight, again._embedding]
    assert all(weight.untyped_storage().data_ptr() in storages for weight in held)
    model.model.layers[1].self_attn.k_proj.weight.fill_(0.5)
    assert (again._layers[1].qkv.weight[32:48] == 0.5).all()


def test_what_it_cannot_compute_runs_as_transformers_has_it() -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    gelu, odd = tiny_model("llama", 1, hidden_act="gelu"), tiny_model("llama", 1, head_dim=12)
    stretched = tiny_model("llama", 1, rope_parameters=dynamic)
    windowed = tiny_model("mistral", 1, sliding_window=16)
    other = Gemma2ForCausalLM(Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    ))  # fmt: skip
    mixed = tiny_model("llama", 1)
    mixed.model.norm.to(torch.float64)
    assert not any(supports(model) for model in (gelu, odd, stretched, windowed, other, mixed))
    pair = make_pair("half", gelu, tiny_model("llama", 1))
    assert isinstance(pair.draft_forward, FusedDecoder)
    assert not isinstance(pair.target_forward, FusedDecoder)
    batch = PackedBatch(filled_pool(gelu), torch.tensor([2, 1]), torch.tensor([3, 0]), 2)
    with torch.inference_mode():
        assert pair.target_forward(torch.arange(4), batch, batch.last).shape == (2, VOCABULARY)


def test_fusing_can_be_switched_off() -> None:
    models = tiny_model("llama", 2), tiny_model("llama", 1)
    assert isinstance(make_pair("on", *models).target_forward, FusedDecoder)
    assert not isinstance(make_pair("off", *models, fused=False).target_forward, FusedDecoder)
