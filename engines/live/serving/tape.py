"""Acceptance tapes: which output tokens the draft model would have proposed.

Under greedy decoding, and under sampling with shared noise, that depends on the text before the token alone. So
a tape recorded once predicts every step of every architecture and draft length.
"""

from __future__ import annotations

import numpy as np

UNKNOWN, WRONG, RIGHT = -1, 0, 1


class TapeBuilder:
    """The tape of one request while it is served; entry i is about output token i, entry 0 stays unknown."""

    def __init__(self, max_tokens: int, longest_step: int) -> None:
        self._bits = np.full(max_tokens + longest_step, UNKNOWN, dtype=np.int8)

    def verified(self, position: int, matched: int, draft_length: int) -> None:
        """A verify step from output token `position` on found that many drafts right."""
        self._bits[position : position + matched] = RIGHT
        if matched < draft_length:
            self._bits[position + matched] = WRONG

    def draft_agrees(self, position: int, right: bool) -> None:
        """The draft model proposes output token `position`, or not."""
        if position > 0:
            self._bits[position] = RIGHT if right else WRONG

    def bits(self, output_tokens: int) -> np.ndarray:
        """[output_tokens] int8."""
        return self._bits[:output_tokens].copy()
