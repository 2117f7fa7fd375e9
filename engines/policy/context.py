"""How long a request may be, for the live engine and the simulated one."""

from __future__ import annotations

from engines.errors import InputError


def context_of(positions: int, max_draft_length: int, max_context: int | None = None) -> int:
    """Return the largest context of a request, in tokens of prompt and output.

    This is max_context if given, otherwise `positions`, the number of positions that both models support, less
    max_draft_length + 1, since drafts may run past the end of the output. Raises InputError if that leaves fewer
    than 2 tokens, or if max_context is not between 2 and that.
    """
    room = positions - max_draft_length - 1
    if room < 2:
        remedy = f"the models have {positions} positions; use at most {positions - 3}"
        raise InputError("draft_length", max_draft_length, remedy)
    if max_context is None:
        return room
    if not 2 <= max_context <= room:
        remedy = f"use 2 to {room}: the models have {positions} positions, drafts take {max_draft_length + 1}"
        raise InputError("max_context", max_context, remedy)
    return max_context
