"""Attention over the slot pool, as an attention function of transformers.

A model call carries the tokens of a whole batch as one packed row, [1, tokens]. The function below writes the
new keys and values to their places in the pool and attends from there, so the transformers model itself is
untouched: any decoder that asks `ALL_ATTENTION_FUNCTIONS` for its attention works.
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
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # (query, keys, values of a layer's pool) -> like the query


@dataclass(frozen=True)
class Layout:
    """How sequences of different lengths are packed into one row, as tensors that a CUDA graph can be given anew.

    owner, offset: [tokens] int64, each token's sequence and place in it. counts: [batch] int64, tokens of each
    sequence, 0 where there is none. longest: no sequence has more tokens.
    """

    owner: Tensor
    offset: Tensor
    counts: Tensor
    longest: int

    @staticmethod
    def of(counts: Sequence[int], device: torch.device) -> Layout:
        """Sequences of these lengths, one after another."""
        owner, offset = packed_places(counts)
        return Layout(to_device(owner, device), to_device(offset, device), to_device(counts, device), max(counts))


def packed_places(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Owner and offset, [tokens] int64 each, as Layout has them, of sequences of these lengths."""
    sizes = np.asarray(counts, dtype=np.int64)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return owner, np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner]


class PackedBatch:
    """The sequences of one model call.

    slots: [batch] int64, each sequence's slot. first: [batch] int64, position of its first new token; all before
    it are in the pool. layout: the new tokens, or how many there are of every sequence. places: theirs, where known
    already. Made of device tensors alone, so that a call can be captured.
    """

    def __init__(
        self, pool: SlotPool, slots: Tensor, first: Tensor, layout: int | Layout, places: Places | None = None
    ) -> None:
        self.pool, self.slots, self.first = pool, slots, first
        self.layout = layout if isinstance(layout, Layout) else None
        self.longest = layout.longest if isinstance(layout, Layout) else layout
        self.positions, self.rows = places or _places(pool, slots, first, layout)
        self.attended: set[int] = set()  # layers of a model that calls slot_pool_attention

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
        """[batch] int32: tokens of each sequence that the pool holds once the new ones are written."""
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
        """[batch, longest] int64: place of each new token in the packed row; beyond a sequence's end its last."""
        offsets = torch.arange(self.longest, device=self.first.device)
        last = (self.new_tokens[:, None] - 1).clamp(min=0)
        places = self.query_starts[:-1, None].long() + torch.minimum(offsets, last)
        return places.clamp(max=len(self.positions) - 1)  # an empty sequence may stand at the row's end

    @cached_property
    def last(self) -> Tensor:
        """[batch] int64: place of each sequence's last new token in the packed row."""
        return (self.query_starts[1:].long() - 1).clamp(min=0)

    @cached_property
    def key_length(self) -> int:
        """No sequence is longer, tokens. Exact where reading it does not hold the device up."""
        return self.pool.row_length if self.lengths.is_cuda else int(self.lengths.max())

    def mask(self, dtype: torch.dtype) -> Tensor:
        """[batch, 1, longest, key_length]: 0 where a query may look (its own position and before), else -inf."""
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
    """The flash kernel straight over the pool: no gather, any slot order, grouped-query heads, causal from the
    bottom right. With seqused_k given, cum_seq_k only says at which row each sequence starts. Shapes as above."""
    out, *_ = torch.ops.aten._flash_attention_forward(
        query, keys.flatten(0, 1), values.flatten(0, 1), batch.query_starts, batch.pool_starts, batch.longest,
        batch.pool.row_length, 0.0, True, False, scale=scale, seqused_k=batch.lengths,
    )  # fmt: skip
    return out


def attention_over(batch: PackedBatch, heads: int, scale: float) -> Attend:
    """The attention of one pass over a batch, for every layer in turn: the fastest for its device and shape."""
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
    """Write and attend. query: [1, heads, tokens, head_dim]; key, value: [1, kv_heads, tokens, head_dim].
    Returns [1, tokens, heads, head_dim] and no weights. Raises UnservedAttentionError for a model that asks for more
    than causal attention over the whole sequence, once a layer."""
    if packed_batch is None:
        raise UnservedAttentionError("its layers do not hand on which sequences a call is about")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    _refuse_unserved(packed_batch, layer, {**asked, "attention_mask": attention_mask})
    keys, values = packed_batch.pool.keys[layer], packed_batch.pool.values[layer]
    keys.flatten(0, 1).index_copy_(0, packed_batch.rows, key[0].transpose(0, 1))
    values.flatten(0, 1).index_copy_(0, packed_batch.rows, value[0].transpose(0, 1))
    attend = _attend_in_place if _has_flash(query) else attend_gathered
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query[0].transpose(0, 1), keys, values, packed_batch, scale)[None], None


class UnservedAttentionError(ValueError):
    """A model wants of its attention what the slot pool does not do."""


# What may be handed to an attention function and changes nothing here: where tokens are is the batch's to say, and
# the rest is about what else a model returns.
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
            raise UnservedAttentionError(f"its attention wants {name}")


AttentionInterface.register(NAME, slot_pool_attention)


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model with transformers' own attention; captured graphs keep what they were captured with."""
    before = model.config._attn_implementation
    if before == NAME:
        model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", True) else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attends_fully(config: PretrainedConfig) -> bool:
    """Whether every layer of a decoder sees the whole context."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return kinds == {"full_attention"} and not (window and window < config.max_position_embeddings)


def forward(model: PreTrainedModel, tokens: Tensor, batch: PackedBatch, keep: Tensor | None) -> Tensor:
    """One pass of a model over a packed batch.

    tokens: [tokens] int64. keep: places in the packed row whose logits are wanted; None: all.
    Returns logits, [kept, vocabulary].
    """
    out = model(
        input_ids=tokens[None],
        position_ids=batch.positions[None],
        use_cache=False,
        logits_to_keep=0 if keep is None else keep,
        packed_batch=batch,
    )
    return out.logits[0]
