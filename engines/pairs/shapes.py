"""Shapes of published models: the settings of their transformers configurations, without weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.errors import InputError


@dataclass(frozen=True)
class ModelShape:
    """The shape of a decoder.

    model_type, settings: as transformers has them. special_tokens: ids of markers (begin, end, padding, roles) and
    ids that no text encodes to. A permutation pair never emits them.
    """

    name: str
    model_type: str
    settings: Mapping[str, Any] = field(hash=False)
    special_tokens: range

    @property
    def vocabulary(self) -> int:
        return int(self.settings["vocab_size"])

    @property
    def hidden(self) -> int:
        return int(self.settings["hidden_size"])

    @property
    def intermediate(self) -> int:
        return int(self.settings["intermediate_size"])

    @property
    def heads(self) -> int:
        return int(self.settings["num_attention_heads"])

    @property
    def kv_heads(self) -> int:
        return int(self.settings["num_key_value_heads"])

    @property
    def head_dim(self) -> int:
        return int(self.settings.get("head_dim", self.hidden // self.heads))

    @property
    def head_norms(self) -> bool:
        """Whether queries and keys are normalized head by head."""
        return self.model_type == "qwen3"

    @property
    def layers(self) -> int:
        return int(self.settings["num_hidden_layers"])

    def with_layers(self, layers: int | None) -> ModelShape:
        """Return the shape with this number of layers. None leaves it as it is."""
        if layers is None:
            return self
        return dataclasses.replace(self, settings={**self.settings, "num_hidden_layers": layers})


def _llama(name: str, special_tokens: range, **settings: Any) -> ModelShape:
    return ModelShape(name, "llama", {"rms_norm_eps": 1e-5, **settings}, special_tokens)


def _rotary(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _llama3_rotary(factor: float, original_tokens: int = 8192) -> dict[str, Any]:
    return {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": original_tokens,
    }  # fmt: skip


_LLAMA_2 = {"vocab_size": 32_000, "bos_token_id": 1, "eos_token_id": 2, "rope_parameters": _rotary(10_000.0)}
_LLAMA_3 = {
    "vocab_size": 128_256, "bos_token_id": 128_000, "eos_token_id": 128_001, "max_position_embeddings": 131_072,
}  # fmt: skip
_QWEN_3 = {
    "vocab_size": 151_936, "bos_token_id": 151_643, "eos_token_id": 151_645, "head_dim": 128,
    "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_parameters": _rotary(1_000_000.0),
}  # fmt: skip
_QWEN_3_SPECIAL = range(151_643, 151_936)
_BYTES = {
    "vocab_size": 264, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "rope_parameters": _rotary(10_000.0),
}  # fmt: skip
_TINY = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512}

SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _llama(
            "llama2-7b", range(3), **_LLAMA_2, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096,
        ),
        _llama(
            "tinyllama-1.1b", range(3), **_LLAMA_2, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
            num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048,
        ),
        _llama(
            "llama3.1-8b", range(128_000, 128_256), **_LLAMA_3, hidden_size=4096, intermediate_size=14_336,
            num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, rope_parameters=_llama3_rotary(8.0),
        ),
        _llama(
            "llama3.2-1b", range(128_000, 128_256), **_LLAMA_3, hidden_size=2048, intermediate_size=8192,
            num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
            rope_parameters=_llama3_rotary(32.0), tie_word_embeddings=True,
        ),
        ModelShape(
            "qwen3-14b", "qwen3",
            {**_QWEN_3, "hidden_size": 5120, "intermediate_size": 17_408, "num_hidden_layers": 40,
             "num_attention_heads": 40, "num_key_value_heads": 8},
            _QWEN_3_SPECIAL,
        ),
        ModelShape(
            "qwen3-0.6b", "qwen3",
            {**_QWEN_3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
             "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True},
            _QWEN_3_SPECIAL,
        ),
        # Not published: the shipped pair, over bytes.
        _llama(
            "embedded-target", range(256, 264), **_BYTES, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
        ),
        _llama(
            "embedded-draft", range(256, 264), **_BYTES, hidden_size=128, intermediate_size=384, num_hidden_layers=2,
        ),
        # Not published: small shapes for tests, with grouped-query attention and both model types.
        _llama(
            "tiny", range(4), **_TINY, hidden_size=128, intermediate_size=256, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, rope_parameters=_llama3_rotary(8.0, 64),
        ),
        ModelShape(
            "tiny-draft", "qwen3",
            {**_TINY, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
             "rope_parameters": _rotary(10_000.0)},
            range(4),
        ),
    )
}  # fmt: skip


def find_shape(name: str) -> ModelShape:
    """Return the shape of this name. Raises InputError, listing the known shapes."""
    if name not in SHAPES:
        raise InputError("shape", name, f"use one of {', '.join(SHAPES)}")
    return SHAPES[name]
