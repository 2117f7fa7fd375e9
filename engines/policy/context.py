"""How long a request may be: the one rule, for live engines and for simulated ones."""

from __future__ import annotations

from engines.errors import InputError


def context_of(positions: int, max_draft_length: int, max_context: int | None = None) -> int:
    """Tokens of prompt and output that a request may have: max_context or, without it, what models that position
    `positions` tokens leave beside the drafts that may run past it. Raises InputError if there is no such room."""
    room = positions - max_draft_length - 1
    if room < 2:
        remedy = f"the models position {positions} tokens; use at most {positions - 3}"
        raise InputError("draft_length", max_draft_length, remedy)
    if max_context is None:
        return room
    if not 2 <= max_context <= room:
        remedy = f"use 2 to {room}: the models position {positions} tokens, drafts take {max_draft_length + 1}"
        raise InputError("max_context", max_context, remedy)
    return max_context
