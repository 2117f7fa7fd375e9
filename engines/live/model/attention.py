"""Attention over the slot pool, as an attention function for transformers.

A model call takes the tokens of a whole batch as one packed row, [1, tokens]. `slot_pool_attention` writes the new
keys and values to the pool and attends to the pool. The transformers model itself is unchanged: any decoder that
looks up its attention in `ALL_ATTENTION_FUNCTIONS` works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from engines.live.device.host import to_device
from engines.live.kernels.decode_attention import attend_gathered
from engines.live.kernels.tables import Places
from engines.live.model.kv_cache import SlotPool

NAME = "slot_pool"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # (query, keys, values of a layer's pool) -> like query


@dataclass(frozen=True)
class Layout:
    """How sequences of different lengths are packed into one row, as tensors that a CUDA graph can be given anew.

    owner, offset: [tokens] int64, each token's sequence and its place in that sequence. counts: [batch] int64, tokens
    per sequence, 0 for a sequence that is only padding. longest: no sequence has more tokens.
    """

    owner: Tensor
    offset: Tensor
    counts: Tensor
    longest: int

    @staticmethod
    def of(counts: Sequence[int], device: torch.device) -> Layout:
        """Return the layout of sequences of these lengths, one after another."""
        owner, offset = packed_places(counts)
        return Layout(to_device(owner, device), to_device(offset, device), to_device(counts, device), max(counts))


def packed_places(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return owner and offset (see Layout) for sequences of these lengths, [tokens] int64 each."""
    sizes = np.asarray(counts, dtype=np.int64)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return owner, np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner]


class PackedBatch:
    """The sequences of one model call.

    slots: [batch] int64, slot of each sequence. first: [batch] int64, position of its first new token; all earlier
    ones are in the pool. layout: layout of the new tokens, or their number if all sequences have the same. places: of
    the new tokens, if already known. Everything is in device tensors, so that a call can be captured.
    """

    def __init__(
        self, pool: SlotPool, slots: Tensor, first: Tensor, layout: int | Layout, places: Places | None = None
    ) -> None:
        self.pool, self.slots, self.first = pool, slots, first
        self.layout = layout if isinstance(layout, Layout) else None
        self.longest = layout.longest if isinstance(layout, Layout) else layout
        self.positions, self.rows = places or _places(pool, slots, first, layout)
        self.attended: set[int] = set()  # layers that have called slot_pool_attention

    @property
    def uniform(self) -> bool:
        """Whether all sequences have the same number of new tokens."""
        return self.layout is None

    @cached_property
    def new_tokens(self) -> Tensor:
        """[batch] int64: new tokens of each sequence."""
        return torch.full_like(self.first, self.longest) if self.layout is None else self.layout.counts

    @cached_property
    def lengths(self) -> Tensor:
        """[batch] int32: tokens of each sequence in the pool, including the new ones."""
        return (self.first + self.new_tokens).to(torch.int32)

    @cached_property
    def query_starts(self) -> Tensor:
        """[batch + 1] int32: where each sequence's new tokens start in the packed row."""
        return torch.nn.functional.pad(torch.cumsum(self.new_tokens, 0), (1, 0)).to(torch.int32)

    @cached_property
    def pool_starts(self) -> Tensor:
        """[batch + 1] int32: the row of the flattened pool where each sequence starts."""
        starts = torch.nn.functional.pad(self.slots * self.pool.row_length, (0, 1))
        return starts.to(torch.int32)

    @cached_property
    def padded(self) -> Tensor:
        """[batch, longest] int64: place of each new token in the packed row. Padding repeats the last token."""
        offsets = torch.arange(self.longest, device=self.first.device)
        last = (self.new_tokens[:, None] - 1).clamp(min=0)
        places = self.query_starts[:-1, None].long() + torch.minimum(offsets, last)
        return places.clamp(max=len(self.positions) - 1)  # an empty sequence may be at the end of the row

    @cached_property
    def last(self) -> Tensor:
        """[batch] int64: place of each sequence's last new token in the packed row."""
        return (self.query_starts[1:].long() - 1).clamp(min=0)

    @cached_property
    def key_length(self) -> int:
        """Upper bound on the tokens per sequence. Exact on a CPU; on a GPU, reading the lengths would stall it."""
        return self.pool.row_length if self.lengths.is_cuda else int(self.lengths.max())

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return the mask, [batch, 1, longest, key_length]: 0 for keys up to the query's position, otherwise -inf."""
        if not hasattr(self, "_mask"):
            queries = self.positions[self.padded]
            keys = torch.arange(self.key_length, device=queries.device)
            hidden = keys > queries[:, :, None]
            self._mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
                hidden, -torch.inf
            )[:, None]
        return self._mask


def _places(pool: SlotPool, slots: Tensor, first: Tensor, layout: int | Layout) -> Places:
    if isinstance(layout, Layout):
        positions, owner_slots = layout.offset + first[layout.owner], slots[layout.owner]
    else:
        positions = (first[:, None] + torch.arange(layout, device=first.device)).reshape(-1)
        owner_slots = slots[:, None].expand(-1, layout).reshape(-1)
    return Places(positions, owner_slots * pool.row_length + positions)


def _attend_in_place(query: Tensor, keys: Tensor, values: Tensor, batch: PackedBatch, scale: float) -> Tensor:
    """Run the flash kernel directly over the pool, without a gather. Shapes are as in attend_gathered.

    Slots may be in any order, heads may be grouped-query, and the mask is causal from the bottom right. With
    seqused_k given, cum_seq_k only gives the row at which each sequence starts.
    """
    out, *_ = torch.ops.aten._flash_attention_forward(
        query, keys.flatten(0, 1), values.flatten(0, 1), batch.query_starts, batch.pool_starts, batch.longest,
        batch.pool.row_length, 0.0, True, False, scale=scale, seqused_k=batch.lengths,
    )  # fmt: skip
    return out


def attention_over(batch: PackedBatch, heads: int, scale: float) -> Attend:
    """Return the fastest attention for a batch's device and shape. One pass uses it for every layer in turn."""
    pool = batch.pool.keys[0]
    if not pool.is_cuda:
        return partial(attend_gathered, batch=batch, scale=scale)
    from engines.live.kernels.decode_attention_triton import LEAST_SHARED_BYTES, DecodeAttention, fits
    from engines.live.kernels.dependent_launch import shared_bytes_of

    roomy = shared_bytes_of(pool.device) >= LEAST_SHARED_BYTES
    if batch.uniform and roomy and fits(batch.longest, heads, *pool.shape[2:]):
        return DecodeAttention(batch.slots, batch.first, batch.longest, heads, pool, scale)
    return partial(_attend_in_place if _has_flash(pool) else attend_gathered, batch=batch, scale=scale)


def _has_flash(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16)


def slot_pool_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_batch: PackedBatch | None = None,
    scaling: float | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """Write new keys and values to the pool, and attend to it.

    query: [1, heads, tokens, head_dim]. key, value: [1, kv_heads, tokens, head_dim].
    Returns [1, tokens, heads, head_dim] and no weights. Raises UnservedAttentionError for a model that needs anything
    but causal attention over the whole sequence, once per layer.
    """
    if packed_batch is None:
        raise UnservedAttentionError("its layers do not pass on packed_batch")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    _refuse_unserved(packed_batch, layer, {**asked, "attention_mask": attention_mask})
    keys, values = packed_batch.pool.keys[layer], packed_batch.pool.values[layer]
    keys.flatten(0, 1).index_copy_(0, packed_batch.rows, key[0].transpose(0, 1))
    values.flatten(0, 1).index_copy_(0, packed_batch.rows, value[0].transpose(0, 1))
    attend = _attend_in_place if _has_flash(query) else attend_gathered
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query[0].transpose(0, 1), keys, values, packed_batch, scale)[None], None


class UnservedAttentionError(ValueError):
    """A model needs attention that the slot pool does not support."""


# Arguments of an attention function that change nothing here: the batch gives the positions, and the others concern
# what else a model returns.
HARMLESS = frozenset(
    {"cache_position", "layer_idx", "logits_to_keep", "output_attentions", "output_hidden_states",
     "output_router_logits", "position_embeddings", "position_ids", "return_dict", "use_cache"}
)  # fmt: skip


def _refuse_unserved(batch: PackedBatch, layer: int, asked: dict[str, Any]) -> None:
    if layer in batch.attended:
        raise UnservedAttentionError(f"layer {layer} attends twice in one pass")
    batch.attended.add(layer)
    for name, value in asked.items():
        if value is None or name in HARMLESS:
            continue
        served = {
            "dropout": value == 0.0, "is_causal": value is True,
            "sliding_window": name == "sliding_window" and value >= batch.pool.positions,
        }.get(name, False)  # fmt: skip
        if not served:
            raise UnservedAttentionError(f"its attention needs {name}")


AttentionInterface.register(NAME, slot_pool_attention)


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use transformers' own attention meanwhile. Graphs captured before keep theirs."""
    before = model.config._attn_implementation
    if before == NAME:
        model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", True) else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attends_fully(config: PretrainedConfig) -> bool:
    """Return whether every layer of a decoder attends to the whole context."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return kinds == {"full_attention"} and not (window and window < config.max_position_embeddings)


def forward(model: PreTrainedModel, tokens: Tensor, batch: PackedBatch, keep: Tensor | None) -> Tensor:
    """Run one pass of a model over a packed batch, and return the logits, [kept, vocabulary].

    tokens: [tokens] int64. keep: places in the packed row whose logits are wanted, None for all.
    """
    out = model(
        input_ids=tokens[None],
        position_ids=batch.positions[None],
        use_cache=False,
        logits_to_keep=0 if keep is None else keep,
        packed_batch=batch,
    )
    return out.logits[0]
