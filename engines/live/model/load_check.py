"""Check, before a model serves, that it gives the same logits through the slot pool as by itself.

transformers has more than a hundred families of decoders, and they differ in more than attention: some look ahead,
cap or bias their scores, keep state besides keys and values, or store these in other shapes. So a few random
sequences go through the pool as in the stages: prompts of different lengths packed into one call, then several
tokens, two and one at a time, at different places of the sequences. Every logit is compared with a plain call of the
same model with its own attention, over one sequence at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engines.errors import InputError
from engines.live.device.host import lane_settings
from engines.live.model.attention import Layout, PackedBatch, plain_attention
from engines.live.model.kv_cache import SlotPool, positions_of

Forward = Callable[[Tensor, PackedBatch, Tensor | None], Tensor]  # (tokens, batch, keep) -> logits of one pass
PROMPTS = (9, 1, 17, 4)  # lengths, tokens
SLOTS = (2, 0, 3, 1)
FOLLOWING = 6  # tokens per sequence after the prompt
FEEDS = ((0, 5), (3, 2), (5, 1))  # (tokens after the prompt, tokens fed), as in verify, draft_first and draft_next
TOLERANCES = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.15}
"""Largest error of one token's logits, relative to their spread. Rounding alone stays well below, and a wrong key or
position gives well above (measured in engines.live.serving.cache_check)."""


@torch.inference_mode()
def expected_logits(role: str, model: PreTrainedModel) -> list[Tensor]:
    """Return a model's own logits, [1 + FOLLOWING, vocabulary] per sequence, from its prompt's last token on.

    Raises InputError, naming the role, for a model that does not run as a decoder.
    """
    try:
        with lane_settings(model.device), plain_attention(model):
            return [
                model(input_ids=tokens[None], use_cache=False).logits[0, -FOLLOWING - 1 :]
                for tokens in _sequences(model)
            ]
    except Exception as error:  # a model that is not a decoder may raise anything
        raise _refusal(role, model, error) from error


@torch.inference_mode()
def check_served(role: str, model: PreTrainedModel, forward: Forward, expected: list[Tensor]) -> None:
    """Raise InputError, naming the role, unless `forward` over a pool gives the expected logits. Frees its memory."""
    tolerance = TOLERANCES.get(model.dtype, TOLERANCES[torch.bfloat16])
    try:
        with lane_settings(model.device):
            worst = max(itertools.starmap(_difference, _served_logits(model, forward, expected)))
    except Exception as error:  # a model that needs more than the pool offers may raise anything
        raise _refusal(role, model, error) from error
    if model.device.type == "cuda":
        torch.cuda.empty_cache()  # so that this memory counts as free when a pool is sized
    if not worst <= tolerance:
        said = f"through the slot pool its logits differ from its own by {worst:.2g}"
        said += f", but rounding explains only {tolerance:g}"
        raise _refusal(role, model, ValueError(said))


def _served_logits(model: PreTrainedModel, forward: Forward, expected: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of logits, served and expected, [tokens, vocabulary] each."""
    sequences, device = _sequences(model), model.device
    prompts = [len(tokens) - FOLLOWING for tokens in sequences]
    pool = SlotPool(model.config, len(SLOTS), max(map(len, sequences)), device, model.dtype)
    slots, lengths = torch.tensor(SLOTS, device=device), torch.tensor(prompts, device=device)
    batch = PackedBatch(pool, slots, torch.zeros_like(slots), Layout.of(prompts, device))
    packed = torch.cat([tokens[:length] for tokens, length in zip(sequences, prompts, strict=True)])
    last = torch.stack([logits[0] for logits in expected])
    found = [(forward(packed, batch, batch.last), last)]
    for start, count in FEEDS:
        batch = PackedBatch(pool, slots, lengths + start, count)
        fed = [tokens[length + start :][:count] for tokens, length in zip(sequences, prompts, strict=True)]
        wanted = [logits[1 + start :][:count] for logits in expected]
        found.append((forward(torch.cat(fed), batch, None), torch.cat(wanted)))
    return found


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest error of a token's logits, relative to their spread. NaN counts as infinite."""
    if found.shape != expected.shape:
        raise ValueError(f"it gave logits of shape {list(found.shape)}, not {list(expected.shape)}")
    error = (found.float() - expected.float()).masked_fill_(found == expected, 0.0).norm(dim=1)
    spread = expected.float() - expected.float().mean(dim=1, keepdim=True)
    return float((error / spread.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)).max().nan_to_num(torch.inf))


def _sequences(model: PreTrainedModel) -> list[Tensor]:
    """Return sequences of random ordinary tokens: PROMPTS (or what the model can position), plus FOLLOWING."""
    room = positions_of(model.config) - FOLLOWING
    if room < 1:
        raise ValueError(f"it has {room + FOLLOWING} positions, but {FOLLOWING + 1} are needed")
    generator = torch.Generator().manual_seed(0)
    given = model.config.to_dict().items()
    special = torch.tensor([value for name, value in given if name.endswith("_token_id") and isinstance(value, int)])
    vocabulary = int(model.config.vocab_size)
    sequences = []
    for length in PROMPTS:
        tokens = torch.randint(vocabulary, (4 * (length + FOLLOWING),), generator=generator)
        ordinary = tokens[~torch.isin(tokens, special)]
        sequences.append(ordinary[: min(length, room) + FOLLOWING].to(model.device))
    return sequences


def _refusal(role: str, model: PreTrainedModel, error: Exception) -> InputError:
    said = str(error).strip() or type(error).__name__
    remedy = f"this model cannot be served from a key-value pool ({said.splitlines()[0]}); use another"
    return InputError(role, model.config.model_type, remedy)
