"""Arguments and results of the kernels that run before and after the model pass of a decode stage."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Places(NamedTuple):
    """Positions of new tokens in their sequences, and their rows in the flattened pool; [tokens] int64 each."""

    positions: Tensor
    rows: Tensor


class Tables(NamedTuple):
    """The tables of all slots. For shapes see engines.live.model.stages.Stages.

    The last row is the scratch slot. A batch may name it several times, and the last write wins, so it is reset after
    every pass.
    """

    tokens: Tensor
    lengths: Tensor
    drafts: Tensor
    draft_lengths: Tensor


class Feed(NamedTuple):
    """New tokens of a batch, the same number per sequence.

    first: [batch] int64, position of each sequence's first new token. tokens: [batch * count] int64.
    """

    first: Tensor
    tokens: Tensor
    places: Places


class Candidates(NamedTuple):
    """The candidates from which each row picks the token with the largest logit, the first if several are equal.

    tokens: [rows, parts], the best token of each part of the vocabulary, in order. logits: [rows, parts] float32, or
    None if there is only one part. The pick is the row's argmax. If there are NaNs, it may be any token.
    """

    tokens: Tensor
    logits: Tensor | None

    @property
    def picked(self) -> Tensor:
        """The picked tokens, [rows] int64."""
        if self.logits is None:
            return self.tokens[:, 0].long()
        return self.tokens.gather(1, self.logits.argmax(1, keepdim=True))[:, 0].long()
