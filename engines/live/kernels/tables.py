"""What a decode stage hands to the kernels around its pass of a model, and gets from them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Places(NamedTuple):
    """Where new tokens are. positions, rows: [tokens] int64, in their sequences and in the flattened pool."""

    positions: Tensor
    rows: Tensor


class Tables(NamedTuple):
    """What is known of every slot; engines.live.model.stages.Stages has the shapes. The last row is scratch: a
    batch may name it many times, and what it then holds depends on who writes last, so it is put back after every
    pass."""

    tokens: Tensor
    lengths: Tensor
    drafts: Tensor
    draft_lengths: Tensor


class Feed(NamedTuple):
    """New tokens of a batch, the same number of every sequence. first: [batch] int64, position of each sequence's
    first; tokens: [batch * count] int64."""

    first: Tensor
    tokens: Tensor
    places: Places


class Candidates(NamedTuple):
    """The tokens among which each row picks the one of the largest logit, the first of equals.

    tokens: [rows, parts], the best of each part of the vocabulary, in its order; logits: [rows, parts] float32, or
    None where there is but one part. Without NaNs that is the row's argmax; with them it is some token.
    """

    tokens: Tensor
    logits: Tensor | None

    @property
    def picked(self) -> Tensor:
        """[rows] int64."""
        if self.logits is None:
            return self.tokens[:, 0].long()
        return self.tokens.gather(1, self.logits.argmax(1, keepdim=True))[:, 0].long()
