"""The models of a pair as transformers runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from engines.live.model.attention import plain_attention
from engines.live.model.pairs import Pair


@contextmanager
def plain_models(pair: Pair, draft_length: int = 4) -> Iterator[None]:
    """Run both models with ordinary attention, greedily and past the end of a sequence, during the block.

    draft_length: number of tokens that the draft proposes in assisted generation.
    """
    models = (pair.target, pair.draft)
    configs, verbosity = [model.generation_config for model in models], logging.get_verbosity()
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(plain_attention(model))
        try:
            logging.set_verbosity_error()
            pair.target.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
            pair.draft.generation_config = GenerationConfig(
                do_sample=False, pad_token_id=0, num_assistant_tokens=draft_length,
                num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0,
            )  # fmt: skip
            yield
        finally:
            logging.set_verbosity(verbosity)
            for model, config in zip(models, configs, strict=True):
                model.generation_config = config


def generate(pair: Pair, prompts: Sequence[Sequence[int]], count: int, assisted: bool = False) -> list[list[int]]:
    """Return `count` tokens after each prompt from transformers' generate in one batch. Prompts are equally long."""
    inputs = torch.tensor([list(prompt) for prompt in prompts], device=pair.device)
    model: Any = pair.target
    out = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=count,
        **({"assistant_model": pair.draft} if assisted else {}),
    )
    return [row[inputs.shape[1] :] for row in out.tolist()]
