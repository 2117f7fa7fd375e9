"""Table updates around the model pass of a decode stage: gather the tokens to feed, and store those that are picked.

The functions are plain PyTorch, and define the Triton kernels of the same names, which replace them for CUDA tensors.
These take one launch before the pass and two after it. PyTorch would take dozens, each of which takes longer to
launch than to run. Only the rows of the given slots and the scratch row change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.live.kernels.tables import Candidates, Feed, Places, Tables


def feed(tables: Tables, slots: Tensor, back: int, count: int, drafted: bool) -> Feed:
    """Gather `count` tokens of each sequence, starting `back` tokens before its end. Drafts follow the known tokens.

    slots: [batch] int64. drafted: count `back` from the end of the drafts instead of the end of the known tokens.
    """
    if slots.is_cuda:
        from engines.live.kernels import table_updates_triton

        return table_updates_triton.feed(tables, slots, back, count, drafted)
    lengths = tables.lengths[slots]
    first = lengths + (tables.draft_lengths[slots] if drafted else 0) - back
    positions = first[:, None] + torch.arange(count)
    place = positions - lengths[:, None]  # among the drafts
    known = tables.tokens[slots[:, None], torch.minimum(positions, lengths[:, None] - 1)]
    tokens = torch.where(place < 0, known, tables.drafts[slots[:, None], place.clamp(min=0)])
    rows = slots[:, None] * tables.tokens.shape[1] + positions
    return Feed(first, tokens.flatten(), Places(positions.flatten(), rows.flatten()))


def candidates(logits: Tensor) -> Candidates:
    """Return the candidates for the largest logit of every row. logits: [rows, vocabulary]."""
    if logits.is_cuda:
        from engines.live.kernels import table_updates_triton

        return table_updates_triton.candidates(logits)
    return Candidates(logits.argmax(-1, keepdim=True), None)


def keep_first_drafts(tables: Tables, slots: Tensor, offered: Candidates) -> Tensor:
    """Store what is picked after each slot's last known token as its first draft.

    offered: two rows per slot, for the tokens after its last but one and its last known token.
    Returns [batch] bool: whether the last known token is the one picked after the token before it.
    """
    if slots.is_cuda:
        from engines.live.kernels import table_updates_triton

        return table_updates_triton.keep_first_drafts(tables, slots, offered)
    picked = offered.picked.view(-1, 2)
    tables.drafts[slots, 0] = picked[:, 1]
    tables.draft_lengths[slots] = 1
    return picked[:, 0] == tables.tokens[slots, tables.lengths[slots] - 1]


def keep_next_drafts(tables: Tables, slots: Tensor, offered: Candidates) -> None:
    """Add one draft to each slot. offered: one row per slot. The scratch slot stays at one draft."""
    if slots.is_cuda:
        from engines.live.kernels import table_updates_triton

        table_updates_triton.keep_next_drafts(tables, slots, offered)
        return
    drafted = tables.draft_lengths[slots]
    tables.drafts[slots, drafted] = offered.picked
    tables.draft_lengths[slots] = drafted + 1
    tables.draft_lengths[-1:].fill_(1)


def keep_verified(tables: Tables, slots: Tensor, k: int, offered: Candidates) -> Tensor:
    """Extend each sequence by its matched drafts and the pick after them.

    offered: k + 1 rows per slot, for the tokens after its last known token and after each of k drafts, real or
    padding. The slots have no drafts afterwards. The scratch slot keeps its two tokens and its draft.
    Returns [batch, 2 + k] int64: how many drafts matched, then all picks.
    """
    if slots.is_cuda:
        from engines.live.kernels import table_updates_triton

        return table_updates_triton.keep_verified(tables, slots, k, offered)
    picked = offered.picked.view(-1, k + 1)
    lengths = tables.lengths[slots]
    matched = count_matches(tables.drafts[slots, :k], picked[:, :k], tables.draft_lengths[slots])
    tables.tokens[slots[:, None], lengths[:, None] + torch.arange(k + 1)] = picked
    tables.lengths[slots] = lengths + matched + 1
    tables.draft_lengths[slots] = 0
    tables.lengths[-1:].fill_(2)
    tables.draft_lengths[-1:].fill_(1)
    return torch.cat([matched[:, None], picked], dim=1)


def count_matches(drafts: Tensor, picked: Tensor, draft_lengths: Tensor) -> Tensor:
    """Return how many leading drafts equal the target's picks, [batch] int64.

    drafts: [batch, k]. picked: [batch, k], the target's pick at the position of each draft. draft_lengths: [batch],
    how many of a row's drafts are real; the others are padding.
    """
    real = torch.arange(drafts.shape[1], device=drafts.device) < draft_lengths[:, None]
    return ((drafts == picked) & real).long().cumprod(1).sum(1)
