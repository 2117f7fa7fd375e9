"""Prefill, draft and verify for a batch of slots on the device.

All state is in tables indexed by slot, so lanes pass only slot numbers to one another. Of a sequence of `length`
known tokens (prompt and output), the target's pool holds the first length - 1, and the draft's pool at least the
first length - 2. After a verify without drafts, the draft's pool lacks the tokens emitted since it was last complete,
until `catch_up` fills them in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engines.live.device.host import to_device
from engines.live.kernels import table_updates
from engines.live.kernels.tables import Candidates, Tables
from engines.live.model.attention import Layout, PackedBatch, packed_places
from engines.live.model.kv_cache import SlotPool
from engines.live.model.pairs import Pair
from engines.live.model.verification import pick
from engines.policy.context import context_of


class Stages:
    """The tables of one engine, and the stages that work on them.

    tokens: [slots + 1, row_length]; lengths, draft_lengths, keys: [slots + 1] int64; drafts: [slots + 1, k or 1];
    temperatures: [slots + 1] float32. The last row is the scratch slot. Rows of the pools hold `max_context` tokens
    and the drafts that may run past them.
    """

    def __init__(self, pair: Pair, slots: int, max_draft_length: int, max_context: int | None = None) -> None:
        self.max_context = context_of(pair.max_context, max_draft_length, max_context)
        row_length = self.max_context + max_draft_length + 1
        device = pair.device
        self.pair, self.device, self.max_draft_length = pair, device, max_draft_length
        self.scratch, self.row_length = slots, row_length
        self.target_pool = SlotPool(pair.target.config, slots, row_length, device, pair.dtype)
        self.draft_pool = SlotPool(pair.draft.config, slots, row_length, device, pair.dtype)
        self.tokens = torch.zeros(slots + 1, row_length, dtype=torch.int64, device=device)
        self.lengths = torch.full((slots + 1,), 2, dtype=torch.int64, device=device)
        self.drafts = torch.zeros(slots + 1, max(max_draft_length, 1), dtype=torch.int64, device=device)
        self.draft_lengths = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self.keys = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self.temperatures = torch.zeros(slots + 1, dtype=torch.float32, device=device)
        self._tables = Tables(self.tokens, self.lengths, self.drafts, self.draft_lengths)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # streams that read the tables do not wait for the one that made them

    def load(
        self,
        slots: Sequence[int],
        prompts: Sequence[Sequence[int]],
        keys: Sequence[int] | np.ndarray,
        temperatures: Sequence[float],
    ) -> None:
        """Load prompts, keys and temperatures of requests into their slots, with one copy to the device."""
        counts = [len(prompt) for prompt in prompts]
        owner, offset = packed_places(counts)
        rows = np.asarray(slots)[owner] * self.row_length + offset
        bits = np.asarray(temperatures, dtype=np.float64).view(np.int64)
        values = to_device(np.concatenate([slots, counts, keys, bits, rows, *prompts]), self.device)
        given, lengths, keys_, bits_, rows_, tokens = values.split([len(slots)] * 4 + [sum(counts)] * 2)
        self.tokens.view(-1).index_copy_(0, rows_, tokens)
        self.lengths.index_copy_(0, given, lengths)
        self.keys.index_copy_(0, given, keys_)
        self.temperatures.index_copy_(0, given, bits_.view(torch.float64).float())

    def fill_randomly(self, slots: slice) -> None:
        """Fill slots with random tokens and drafts, for measurements that depend on sizes alone."""
        for table in (self.tokens, self.drafts):
            table[slots].random_(0, self.pair.vocabulary)

    def set_lengths(self, slots: Tensor, lengths: Tensor, draft_length: int) -> None:
        """Reset sequences to these lengths and to `draft_length` drafts each. slots, lengths: [batch] int64."""
        self.lengths.index_copy_(0, slots, lengths)
        self.draft_lengths.index_fill_(0, slots, draft_length)

    def prefill_draft(self, slots: Tensor, layout: Layout) -> None:
        """Fill the draft's pool from the prompts. slots: [batch] int64; layout: how the prompts are packed."""
        batch, tokens = self._prompts(self.draft_pool, slots, layout)
        self.pair.draft_forward(tokens, batch, batch.last[:1])

    def catch_up(self, slots: Tensor, first: Tensor, layout: Layout) -> None:
        """Fill the draft's pool with tokens that were emitted without drafts.

        slots: [batch] int64. first: [batch] int64, position of each sequence's first token that the pool lacks.
        layout: how the missing tokens are packed.
        """
        batch, tokens = self._prompts(self.draft_pool, slots, layout, first)
        self.pair.draft_forward(tokens, batch, batch.last[:1])

    def prefill_target(self, slots: Tensor, layout: Layout, sampling: bool = False) -> Tensor:
        """Fill the target's pool from the prompts, and return the first output tokens, [batch] int64."""
        batch, tokens = self._prompts(self.target_pool, slots, layout)
        logits = self.pair.target_forward(tokens, batch, batch.last)
        lengths = self.lengths[slots]
        first = self._pick(logits, slots, lengths, sampling)
        self.tokens[slots, lengths] = first
        self.lengths[slots] = lengths + 1
        self.draft_lengths.index_fill_(0, slots, 0)  # whatever the request before had
        self._reset_scratch()
        return first

    def draft(self, slots: Tensor, k: int, sampling: bool = False) -> Tensor:
        """Draft k tokens for each slot. Returns the result of draft_first."""
        draft_agrees = self.draft_first(slots, sampling)
        for _ in range(k - 1):
            self.draft_next(slots, sampling)
        return draft_agrees

    def draft_first(self, slots: Tensor, sampling: bool = False) -> Tensor:
        """Draft the first token for each slot.

        Returns [batch] bool: whether the draft model would have proposed the last known token. The acceptance tape
        needs this, and here it costs nothing extra.

        The pass feeds the last two tokens, so that the pool is complete even if the last step accepted all drafts.
        """
        batch, tokens = self._feed(self.draft_pool, slots, back=2, count=2)
        logits = self.pair.draft_forward(tokens, batch, None)
        return table_updates.keep_first_drafts(self._tables, slots, self._offer(logits, batch, sampling))

    def draft_next(self, slots: Tensor, sampling: bool = False) -> None:
        """Draft one more token for each slot, after its present drafts."""
        batch, tokens = self._feed(self.draft_pool, slots, back=1, count=1, drafted=True)
        logits = self.pair.draft_forward(tokens, batch, None)
        table_updates.keep_next_drafts(self._tables, slots, self._offer(logits, batch, sampling))

    def verify(self, slots: Tensor, k: int, sampling: bool = False) -> Tensor:
        """Verify each slot's drafts with the target. k: the largest draft length among them, or 0.

        Returns [batch, 2 + k] int64: how many drafts matched, then the target's picks. The first matched + 1 picks
        are the step's output.
        """
        batch, tokens = self._feed(self.target_pool, slots, back=1, count=k + 1)
        logits = self.pair.target_forward(tokens, batch, None)
        return table_updates.keep_verified(self._tables, slots, k, self._offer(logits, batch, sampling))

    def draft_agrees_on_last(self, tokens: Sequence[int], key: int = 0, temperature: float = 0.0) -> bool:
        """Return whether the draft model proposes the last of these tokens after the others, in the scratch slot."""
        self.load([self.scratch], [tokens[:-1]], [key], [temperature])
        slots = torch.tensor([self.scratch], device=self.device)
        batch, prompt = self._prompts(self.draft_pool, slots, Layout.of([len(tokens) - 1], self.device))
        logits = self.pair.draft_forward(prompt, batch, batch.last)
        picked = self._pick(logits, slots, self.lengths[slots], temperature > 0)
        self._reset_scratch()
        return int(picked) == tokens[-1]

    def _prompts(
        self, pool: SlotPool, slots: Tensor, layout: Layout, first: Tensor | None = None
    ) -> tuple[PackedBatch, Tensor]:
        """Return the batch of packed known tokens, and the tokens. first: position of each sequence's first one."""
        batch = PackedBatch(pool, slots, torch.zeros_like(slots) if first is None else first, layout)
        return batch, self.tokens.view(-1)[batch.rows]

    def _feed(
        self, pool: SlotPool, slots: Tensor, back: int, count: int, drafted: bool = False
    ) -> tuple[PackedBatch, Tensor]:
        """Return the batch of a decode stage and its tokens; see engines.live.kernels.table_updates.feed."""
        first, tokens, places = table_updates.feed(self._tables, slots, back, count, drafted)
        return PackedBatch(pool, slots, first, count, places), tokens

    def _offer(self, logits: Tensor, batch: PackedBatch, sampling: bool) -> Candidates:
        """Return the candidates for each token of the batch. logits: [tokens, vocabulary]."""
        if not sampling:
            return table_updates.candidates(logits)
        slots = batch.slots.repeat_interleave(batch.longest)
        return Candidates(self._pick(logits, slots, batch.positions + 1, sampling)[:, None], None)

    def _reset_scratch(self) -> None:
        """Reset the scratch slot: it holds padding, and its sequence must not grow past the end of the row."""
        self.lengths[self.scratch :].fill_(2)

    def _pick(self, logits: Tensor, slots: Tensor, positions: Tensor, sampling: bool) -> Tensor:
        if not sampling:
            return logits.argmax(-1)
        return pick(logits, self.temperatures[slots], self.keys[slots], positions)
