"""Requests to an engine, and what its target finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engines.errors import InputError, require_whole

MOST_TOKENS = 10_000_000  # per prompt or output: beyond any model's context
MOST_TEMPERATURE = 1e6  # logits are divided by it in float32; far below this only noise is left
LATEST_S = 4e9  # of an arrival, 127 years: a float beyond it no longer resolves a microsecond


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue.

    prompt_tokens: length of the prompt.
    max_tokens: most output tokens, including the first one (from prefill).
    arrival_s: seconds after the start of the run. None in a closed loop, where a client submits it when free.
    prompt: token ids. Only a live engine needs them.
    temperature: 0 is greedy. Above 0, tokens are sampled with random numbers keyed by (seed, id, position).
    ignore_eos: continue to max_tokens even after an end-of-sequence token, as benchmarks do.
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
        """Raise InputError for values that no engine can serve: they would break all other requests too."""
        require_whole("id", self.id, 0)
        require_whole("prompt_tokens", self.prompt_tokens, 1, MOST_TOKENS)
        require_whole("max_tokens", self.max_tokens, 1, MOST_TOKENS)
        require_whole("seed", self.seed, 0)
        check_moment("arrival_s", 0.0 if self.arrival_s is None else self.arrival_s)
        check_temperature(self.temperature)


def check_moment(field: str, seconds: float) -> None:
    """Raise InputError unless `seconds` is a number from 0 to LATEST_S."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LATEST_S:
        raise InputError(field, seconds, f"use seconds from 0 to {LATEST_S:g}")


def check_temperature(temperature: float) -> None:
    """Raise InputError unless `temperature` is a number from 0 to MOST_TEMPERATURE."""
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not number or not 0 <= temperature <= MOST_TEMPERATURE:
        raise InputError("temperature", temperature, f"use 0 (greedy) to {MOST_TEMPERATURE:g}")


class Status(StrEnum):
    """State of a request. The last four are final."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Emission:
    """Result of a target pass (prefill or verify) for one request.

    matched: drafts that agree with the target, up to the first that does not (0 for prefill).
    stop_after: how many of the matched + 1 tokens to keep, the last being the end of the sequence. None if they
    contain no end of sequence.
    """

    matched: int = 0
    stop_after: int | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """Tokens emitted by a target pass, and its drafts by what became of them.

    accepted: agreed and emitted. rejected: did not agree, or came after one that did not. discarded: came after the
    last token of the output, where agreement has no meaning.
    """

    emitted: int
    accepted: int = 0
    rejected: int = 0
    discarded: int = 0
