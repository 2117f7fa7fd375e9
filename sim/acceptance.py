"""Decide which drafts the target accepts, by replaying tapes or by drawing from a model.

For each request, a source tells how many drafts agree in a step that begins at output position p, before the first
that does not, if k were unlimited. Models draw one uniform number per (seed, request, position), so the outcome does
not depend on draft length, lane or batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from engines.errors import InputError, require_whole
from engines.policy.draft_length import MOST_DRAFTS
from engines.policy.request import Request
from engines.record.run import Run
from sim.keyed_random import uniform

UNKNOWN = -1
_DRAFTS, _ALPHA = 0, 1  # purposes of random numbers, part of their key


class RequestAcceptance(NamedTuple):
    """The acceptance of one request.

    output_tokens: how many it will have if no limit cuts the output. matches[p]: how many drafts agree in a step that
    begins at output position p, if k were unlimited, for as many positions as were asked for. tape: one entry per
    output token, as in engines.record.run.Run; None if whether a draft is right depends on more than its position.
    """

    output_tokens: int
    matches: list[int]
    tape: np.ndarray | None


class AcceptanceSource(Protocol):
    """A source that tells which drafts of a request are right."""

    def acceptance(self, request: Request, seed: int, tokens: int | None = None) -> RequestAcceptance:
        """Return the acceptance at the first `tokens` output positions (by default all that the request asks for).

        Asking for more positions never changes earlier ones. Asking for fewer only cuts matches that reach beyond
        them, which makes no difference to a request that ends there.
        """

    def describe(self) -> dict[str, Any]:
        """Return plain values for run.toml."""


@dataclass(frozen=True)
class Tapes:
    """Replay recorded tapes.

    unknown: probability that a draft at an unknown position (-1) is right. It is drawn, so 0 counts all of them wrong
    and 1 all right.
    ended: requests whose output ended at a stop token where their tape ends, and ends there again. Any other request
    must not ask for more tokens than its tape has.
    origin: where the tapes come from, for run.toml and error messages.
    Raises InputError for a request without a tape.
    """

    tapes: Mapping[int, np.ndarray]
    unknown: float = 0.0
    ended: frozenset[int] = frozenset()
    origin: str = "tape"

    @staticmethod
    def recorded_by(run: Run) -> Tapes:
        """Return the tapes of a run, with `ended` set to the requests that ended at a stop token.

        A run that did not always draft has not seen whether some drafts are right. They are drawn, with the share of
        right ones among the others.
        """
        stopped = run.finished["finish_reason"] == "stop"
        bits = np.concatenate([tape[1:] for tape in run.tapes.values()] or [np.array([], np.int8)])
        known = bits[bits != UNKNOWN]
        unknown = float((known == 1).mean()) if 0 < len(known) < len(bits) else 0.0
        return Tapes(run.tapes, unknown, frozenset(run.finished.loc[stopped, "request"].tolist()))

    def check(self, requests: Iterable[Request], max_context: int | None = None) -> None:
        """Raise InputError for the first request that asks for more output tokens than its tape has.

        Prompt and output are first cut to max_context tokens. A request whose prompt leaves no room for output needs
        no tape.
        """
        for request in requests:
            tokens = request.max_tokens
            if max_context is not None:
                tokens = min(tokens, max_context - request.prompt_tokens)
            known = len(self._tape(request)) if tokens > 0 else 0
            if known < tokens and request.id not in self.ended:
                remedy = f"request {request.id} asks for {tokens} output tokens and its {self._noun} has {known}: "
                remedy += f"ask for at most {known}, or use another acceptance, such as profile or 0.8"
                raise InputError("acceptance", self.origin, remedy)

    @property
    def _noun(self) -> str:
        return "tape" if self.origin == "tape" else "mask"

    def _tape(self, request: Request) -> np.ndarray:
        tape = self.tapes.get(request.id)
        if tape is None:
            how = "replay the run that recorded the tapes" if self._noun == "tape" else "add its line"
            remedy = f"no {self._noun} of request {request.id}; {how}, or ask for fewer requests"
            raise InputError("acceptance", self.origin, remedy)
        if len(tape) == 0:
            remedy = f"the {self._noun} of request {request.id} is empty; "
            remedy += "use another acceptance, such as profile or 0.8"
            raise InputError("acceptance", self.origin, remedy)
        return tape

    def acceptance(self, request: Request, seed: int, tokens: int | None = None) -> RequestAcceptance:
        tape = self._tape(request)
        known = np.asarray(tape)[:tokens]
        right = known == 1
        if self.unknown > 0:
            right |= (known == UNKNOWN) & (_uniform(seed, request, len(known)) < self.unknown)
        return _from_bits(right, len(tape))

    def describe(self) -> dict[str, Any]:
        return {"source": "tapes", "unknown": self.unknown} | (
            {} if self.origin == "tape" else {"masks": self.origin}
        )


@dataclass(frozen=True)
class Independent:
    """Each draft is right with probability alpha, independently of all others."""

    alpha: float

    def __post_init__(self) -> None:
        _probability("alpha", self.alpha)

    def acceptance(self, request: Request, seed: int, tokens: int | None = None) -> RequestAcceptance:
        uniform = _uniform(seed, request, _positions(request, tokens))
        return _from_bits(uniform < self.alpha, request.max_tokens)

    def describe(self) -> dict[str, Any]:
        return {"source": "independent", "alpha": self.alpha}


def alpha_of(length: float, k: int) -> float:
    """Return the alpha at which independent drafts have this mean acceptance length at draft length k.

    length: tokens emitted per verify step, the target's own (the bonus token) included, so from 1 to k + 1. It is
    1 + alpha + alpha^2 + ... + alpha^k (Leviathan et al. 2023, equation 1). Raises InputError.
    """
    from scipy.optimize import brentq  # takes 0.2 s to import

    require_whole("acceptance k", k, 1, MOST_DRAFTS)
    if not 1 <= length <= k + 1:
        remedy = f"a step of k = {k} emits from 1 (the target's own token) to {k + 1} tokens; give such a length"
        raise InputError("acceptance length", length, remedy)
    return float(brentq(lambda alpha: sum(alpha**i for i in range(k + 1)) - length, 0.0, 1.0, xtol=1e-12))


@dataclass(frozen=True)
class PerPosition:
    """Acceptance depends on the position within the step, as with vLLM's synthetic_acceptance_rates.

    rates: entry i is the unconditional probability that the first i + 1 drafts of a step are all accepted. Drafts
    beyond the last entry have the conditional acceptance rate of the last.
    """

    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rates:
            raise InputError("rates", self.rates, "give one rate per draft position")
        for rate in self.rates:
            _probability("rates", rate)
        if list(self.rates) != sorted(self.rates, reverse=True):
            raise InputError("rates", self.rates, "unconditional rates cannot rise with the position")

    def acceptance(self, request: Request, seed: int, tokens: int | None = None) -> RequestAcceptance:
        before = (1.0, *self.rates[:-1])
        conditional = [rate / last if last else 0.0 for rate, last in zip(self.rates, before, strict=True)]
        uniform = _uniform(seed, request, _positions(request, tokens))
        found = matches(uniform < conditional[-1])  # for drafts that are all beyond the last entry
        for rate in conditional[-2::-1]:
            following = np.append(found[1:], 0)
            found = np.where(uniform < rate, 1 + following, 0)
        return RequestAcceptance(request.max_tokens, found.tolist(), None)

    def describe(self) -> dict[str, Any]:
        return {"source": "per position", "rates": list(self.rates)}


@dataclass(frozen=True)
class PerRequestSpread:
    """Each request has its own alpha, drawn from a Beta distribution, and its drafts are independent.

    mean, sd: mean and standard deviation of alpha over requests.
    """

    mean: float
    sd: float

    def __post_init__(self) -> None:
        _probability("mean", self.mean)
        if self.sd < 0 or (self.sd > 0 and self.sd**2 >= self.mean * (1 - self.mean)):
            most = (self.mean * (1 - self.mean)) ** 0.5
            raise InputError("acceptance sd", self.sd, f"use 0, or less than {most:.3f} at this mean")

    def alpha(self, request: Request, seed: int) -> float:
        """Return the alpha of a request."""
        if self.sd == 0:
            return self.mean
        from scipy.special import betaincinv  # takes 0.1 s to import

        total = self.mean * (1 - self.mean) / self.sd**2 - 1
        quantile = uniform(seed, request.id, _ALPHA, 1)[0]
        return float(betaincinv(self.mean * total, (1 - self.mean) * total, quantile))

    def acceptance(self, request: Request, seed: int, tokens: int | None = None) -> RequestAcceptance:
        uniform = _uniform(seed, request, _positions(request, tokens))
        return _from_bits(uniform < self.alpha(request, seed), request.max_tokens)

    def describe(self) -> dict[str, Any]:
        return {"source": "per-request spread", "mean": self.mean, "sd": self.sd}


@dataclass(frozen=True)
class Markov:
    """Whether a draft is right depends on whether the draft at the previous position was."""

    after_right: float
    after_wrong: float

    def __post_init__(self) -> None:
        _probability("after_right", self.after_right)
        _probability("after_wrong", self.after_wrong)

    def acceptance(self, request: Request, seed: int, tokens: int | None = None) -> RequestAcceptance:
        uniform = _uniform(seed, request, _positions(request, tokens))
        leaving = 1 - self.after_right + self.after_wrong
        right = bool(uniform[0] * leaving < self.after_wrong)  # the chain's stationary probability
        bits = []
        for number in uniform.tolist():
            right = number < (self.after_right if right else self.after_wrong)
            bits.append(right)
        return _from_bits(np.array(bits), request.max_tokens)

    def describe(self) -> dict[str, Any]:
        return {"source": "markov", "after_right": self.after_right, "after_wrong": self.after_wrong}


class Remembered:
    """A source that keeps what it drew, for runs that meet the same requests with the same seed.

    It keeps about `most` output positions, 8 bytes each, and then begins anew.
    """

    def __init__(self, source: AcceptanceSource, most: int = 1_000_000) -> None:
        self._source, self._most = source, most
        self._known: dict[tuple[int, int, int, int | None], RequestAcceptance] = {}
        self._positions = 0

    def acceptance(self, request: Request, seed: int, tokens: int | None = None) -> RequestAcceptance:
        key = seed, request.id, request.max_tokens, tokens
        found = self._known.get(key)
        if found is None:
            if self._positions >= self._most:
                self._known.clear()
                self._positions = 0
            found = self._known[key] = self._source.acceptance(request, seed, tokens)
            self._positions += len(found.matches)
        return found

    def describe(self) -> dict[str, Any]:
        return self._source.describe()


Drawn = Independent | PerPosition | PerRequestSpread | Markov
"""Sources that draw by nothing but the seed and the request."""


@lru_cache(maxsize=4)
def remembered(source: Drawn) -> Remembered:
    """Return a source of this process that remembers what equal sources drew."""
    return Remembered(source)


def matches(right: np.ndarray) -> np.ndarray:
    """Return, for each entry p, how many entries from p on are true before the first that is not."""
    places = np.arange(len(right))
    wrong = np.where(right, len(right), places)
    return np.minimum.accumulate(wrong[::-1])[::-1] - places


def _positions(request: Request, tokens: int | None) -> int:
    return request.max_tokens if tokens is None else min(tokens, request.max_tokens)


def _from_bits(right: np.ndarray, output_tokens: int) -> RequestAcceptance:
    tape = right.astype(np.int8)
    tape[0] = UNKNOWN  # the first token comes from prefill, which has no drafts
    return RequestAcceptance(output_tokens, matches(right).tolist(), tape)


def _uniform(seed: int, request: Request, count: int) -> np.ndarray:
    """Draw one number per position. Drawing more never changes earlier ones."""
    return uniform(seed, request.id, _DRAFTS, count)


def _probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(name, value, "use a probability from 0 to 1")
