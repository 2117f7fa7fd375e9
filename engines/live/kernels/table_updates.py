"""What a decode stage does around its pass of a model: which tokens are fed, and what becomes of those picked.

The functions below are plain PyTorch, and the meaning of the Triton kernels of the same names, which take over for
CUDA tensors: one launch before the pass and two after it, where PyTorch takes dozens that each last longer to start
than to run. They change nothing but the tables' rows of the given slots and the scratch row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.live.kernels.tables import Candidates, Feed, Places, Tables


def feed(tables: Tables, slots: Tensor, back: int, count: int, drafted: bool) -> Feed:
    """`count` tokens of each sequence, from `back` before its end on; drafts follow what is known.

    slots: [batch] int64. drafted: the end is that of its drafts, not that of what is known.
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
    """What is left to choose from when every row takes its largest logit. logits: [rows, vocabulary]."""
    if logits.is_cuda:
        from engines.live.kernels import table_updates_triton

        return table_updates_triton.candidates(logits)
    return Candidates(logits.argmax(-1, keepdim=True), None)


def keep_first_drafts(tables: Tables, slots: Tensor, offered: Candidates) -> Tensor:
    """Each slot's first draft is what is picked after its last known token. offered: two rows a slot, after its last
    two known tokens. Returns [batch] bool: whether the last known token is what is picked after the one before."""
    if slots.is_cuda:
        from engines.live.kernels import table_updates_triton

        return table_updates_triton.keep_first_drafts(tables, slots, offered)
    picked = offered.picked.view(-1, 2)
    tables.drafts[slots, 0] = picked[:, 1]
    tables.draft_lengths[slots] = 1
    return picked[:, 0] == tables.tokens[slots, tables.lengths[slots] - 1]


def keep_next_drafts(tables: Tables, slots: Tensor, offered: Candidates) -> None:
    """One more draft of each slot. offered: one row a slot. The scratch slot stays at its first draft."""
    if slots.is_cuda:
        from engines.live.kernels import table_updates_triton

        table_updates_triton.keep_next_drafts(tables, slots, offered)
        return
    drafted = tables.draft_lengths[slots]
    tables.drafts[slots, drafted] = offered.picked
    tables.draft_lengths[slots] = drafted + 1
    tables.draft_lengths[-1:].fill_(1)


def keep_verified(tables: Tables, slots: Tensor, k: int, offered: Candidates) -> Tensor:
    """Lengthen each sequence by its drafts that match and the pick after them. offered: k + 1 rows a slot, after
    its last known token and after k drafts, real or not. The scratch slot keeps its two tokens.
    Returns [batch, 2 + k] int64: how many drafts matched, then all that was picked."""
    if slots.is_cuda:
        from engines.live.kernels import table_updates_triton

        return table_updates_triton.keep_verified(tables, slots, k, offered)
    picked = offered.picked.view(-1, k + 1)
    lengths = tables.lengths[slots]
    matched = count_matches(tables.drafts[slots, :k], picked[:, :k], tables.draft_lengths[slots])
    tables.tokens[slots[:, None], lengths[:, None] + torch.arange(k + 1)] = picked
    tables.lengths[slots] = lengths + matched + 1
    tables.lengths[-1:].fill_(2)
    return torch.cat([matched[:, None], picked], dim=1)


def count_matches(drafts: Tensor, picked: Tensor, draft_lengths: Tensor) -> Tensor:
    """Leading drafts that equal the target's picks, [batch] int64.

    drafts: [batch, k]; picked: [batch, k] (the target's choice at each draft's place); draft_lengths: [batch],
    how many of a row's drafts are real and not padding.
    """
    real = torch.arange(drafts.shape[1], device=drafts.device) < draft_lengths[:, None]
    return ((drafts == picked) & real).long().cumprod(1).sum(1)
