"""What became of a request so far, and what a target pass adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from engines.policy.architecture import Stage
from engines.policy.request import Emission, Request, Settlement, Status


@dataclass(slots=True, eq=False)
class RequestState:
    """A request as the scheduler sees it: what it needs next and what it has received so far.

    Times are seconds on the caller's clock. `needs` is the stage that it waits for or is in. `ready_s` is when it
    became ready for that stage, `ready_order` its place in the order in which requests became ready, and
    `ready_missing_s` for how long a slot and a permit had been missing by then. `draft_length` is the number of
    drafts that await verification. `behind` is the number of output tokens that were emitted without drafts since the
    draft model last ran: it has not seen them. Once the request has ended, drafted = accepted + rejected + discarded.
    """

    request: Request
    max_tokens: int
    arrival_s: float
    ready_s: float
    ready_order: int
    ready_missing_s: tuple[float, float]
    needs: Stage = Stage.PREFILL
    status: Status = Status.WAITING
    slot: int | None = None
    worker: int | None = None
    draft_length: int = 0
    behind: int = 0
    emitted: int = 0
    verifications: int = 0
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    discarded: int = 0
    prefill_start_s: float | None = None
    prefill_end_s: float | None = None
    finish_s: float | None = None
    finish_reason: str = ""
    error: str = ""
    cancel_requested: bool = field(default=False, repr=False)

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def context_tokens(self) -> int:
        """Prompt and output tokens so far."""
        return self.request.prompt_tokens + self.emitted

    @property
    def ended(self) -> bool:
        return self.finish_s is not None


def settle(emission: Emission, draft_length: int, remaining: int) -> Settlement:
    """Settle a target pass over `draft_length` drafts for a request that may emit `remaining` more tokens.

    The pass emits the accepted drafts and one token of the target's own, cut at the end of the output.
    """
    matched, stop_after = emission.matched, emission.stop_after
    room = remaining if stop_after is None or stop_after > remaining else stop_after
    return _settlement(matched, draft_length, True) if matched < room else _settlement(room, draft_length, False)


@lru_cache(maxsize=10_000)
def _settlement(accepted: int, draft_length: int, whole: bool) -> Settlement:
    """whole: the pass was not cut. There are few different settlements, and a long run has many of each."""
    if whole:
        return Settlement(accepted + 1, accepted, draft_length - accepted)
    return Settlement(accepted, accepted, 0, draft_length - accepted)
