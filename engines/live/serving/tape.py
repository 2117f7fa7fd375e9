"""Acceptance tapes: which output tokens the draft model would have proposed.

With greedy decoding, or sampling with shared noise, this depends only on the text before the token. So one recorded
tape predicts every step of every architecture and draft length.
"""

from __future__ import annotations

import numpy as np

UNKNOWN, WRONG, RIGHT = -1, 0, 1


class TapeBuilder:
    """The tape of one request that is being served. Entry i is for output token i; entry 0 stays unknown."""

    def __init__(self, max_tokens: int, longest_step: int) -> None:
        self._bits = np.full(max_tokens + longest_step, UNKNOWN, dtype=np.int8)

    def verified(self, position: int, matched: int, draft_length: int) -> None:
        """Record a verify step that starts at output token `position`."""
        self._bits[position : position + matched] = RIGHT
        if matched < draft_length:
            self._bits[position + matched] = WRONG

    def draft_agrees(self, position: int, right: bool) -> None:
        """Record whether the draft model proposes output token `position`."""
        if position > 0:
            self._bits[position] = RIGHT if right else WRONG

    def bits(self, output_tokens: int) -> np.ndarray:
        """Return the tape, [output_tokens] int8."""
        return self._bits[:output_tokens].copy()
