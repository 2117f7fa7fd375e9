"""What is asked of an engine, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from engines.errors import InputError, require_whole
from engines.policy.architecture import Stage

MOST_TOKENS = 10_000_000  # of a prompt or an output: beyond any model's context
MOST_TEMPERATURE = 1e6  # logits are divided by it in float32, and far below it nothing but noise is left
LATEST_S = 4e9  # of an arrival, 127 years: a clock beyond it does not resolve a microsecond any more


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue.

    prompt_tokens: length of the prompt, tokens.
    max_tokens: output tokens at most, the first one (from prefill) included.
    arrival_s: seconds after the run's start; None in a closed loop, where a free client submits it.
    prompt: token ids, only needed by a live engine.
    temperature: 0 is greedy; above 0, tokens are sampled with randomness keyed by (seed, id, position).
    ignore_eos: go on to max_tokens even after an end-of-sequence token, as benchmarks do.
    """

    id: int
    prompt_tokens: int
    max_tokens: int
    arrival_s: float | None = None
    prompt: tuple[int, ...] | None = None
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = True

    def check(self) -> None:
        """Raises InputError for values that no engine serves: a request that breaks one would break all others."""
        require_whole("id", self.id, 0)
        require_whole("prompt_tokens", self.prompt_tokens, 1, MOST_TOKENS)
        require_whole("max_tokens", self.max_tokens, 1, MOST_TOKENS)
        require_whole("seed", self.seed, 0)
        check_moment("arrival_s", 0.0 if self.arrival_s is None else self.arrival_s)
        check_temperature(self.temperature)


def check_moment(field: str, seconds: float) -> None:
    """Raises InputError unless it is a number of seconds from 0 to LATEST_S."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LATEST_S:
        raise InputError(field, seconds, f"use seconds from 0 to {LATEST_S:g}")


def check_temperature(temperature: float) -> None:
    """Raises InputError unless it is a number from 0 to MOST_TEMPERATURE."""
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not number or not 0 <= temperature <= MOST_TEMPERATURE:
        raise InputError("temperature", temperature, f"use 0 (greedy) to {MOST_TEMPERATURE:g}")


class Status(StrEnum):
    """Where a request is in its life; the last four are final."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REJECTED = "rejected"


@dataclass(slots=True, eq=False)
class RequestState:
    """A request as the scheduler sees it: what it needs next and what it has received so far.

    Times are seconds on the caller's clock. `needs` is the stage it waits for or is in; `ready_s` is when it last
    became ready for it, `ready_order` its place among all that did, `ready_missing_s` how long slots and permits
    had then been missing. `draft_length` is the number of drafts that await verification. drafted = accepted +
    rejected + discarded once it has ended.
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


@dataclass(frozen=True, slots=True)
class Emission:
    """What a target pass (prefill or verify) found for one request.

    matched: drafts that agreed with the target before the first that did not (0 for prefill).
    stop_after: of the matched + 1 tokens, how many to keep because an end of sequence is the last of them;
    None when there is none.
    """

    matched: int = 0
    stop_after: int | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a target pass was booked: drafts accepted, rejected (wrong, or behind a wrong one) and discarded
    (behind the last token of the output, where right and wrong have no meaning), and tokens emitted."""

    emitted: int
    accepted: int = 0
    rejected: int = 0
    discarded: int = 0


def settle(emission: Emission, draft_length: int, remaining: int) -> Settlement:
    """Book a target pass over `draft_length` drafts for a request that may emit `remaining` more tokens.

    A step emits the accepted drafts plus one token of the target's own, cut at the end of the output.
    """
    room = remaining if emission.stop_after is None else min(remaining, emission.stop_after)
    if emission.matched < room:
        rejected = draft_length - emission.matched
        return Settlement(emission.matched + 1, emission.matched, rejected)
    return Settlement(room, room, 0, draft_length - room)
