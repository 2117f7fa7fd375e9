"""A draft length that follows the load: for each draft batch, the k with the most expected tokens per second.

Drafting k tokens emits 1 + a + a^2 + ... + a^k tokens per request and step, if each draft is accepted with
probability a. What it costs depends on the load: a verify of few requests reads the weights once whatever k is, and
one of many is bound by arithmetic, so that every rejected draft costs time. The controller weighs the two with
measured times, as goodput-driven systems do (SmartSpec, TurboSpec: Liu et al., 2024; Nightjar, 2025).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from engines.policy.draft_length import LoadAdaptiveDraftLength

CONTEXT_STEP = 32  # contexts are rounded to it: times change little within, and are looked up for every batch
MOST_KNOWN = 10_000


class StepTimes(Protocol):
    """The mean seconds of the parts of an architecture's steps, each alone, and how two lanes slow one another.

    batch: requests. k: draft length. context_tokens: mean context per request. A rate is a speed as a fraction of the
    solo speed. Raises InputError for what was not measured.
    """

    def draft_s(self, batch: int, k: int, context_tokens: float) -> float:
        """Return the seconds of a draft on the device."""

    def verify_s(self, batch: int, k: int, context_tokens: float) -> float:
        """Return the seconds of a verify on the device."""

    def host_s(self, batch: int, drafts: bool, verifies: bool) -> float:
        """Return the host seconds of a step that drafts, verifies, or does both."""

    def side_by_side(self, drafting: int, verifying: int, k: int, context_tokens: float) -> tuple[float, float]:
        """Return the rates of a draft and a verify that run at the same time."""

    def catch_up_s(self, tokens: int) -> float:
        """Return the seconds that the draft model takes for this many tokens that it has not seen."""


class Load(NamedTuple):
    """What a draft batch would meet.

    batch: its requests. beside: other requests that are being decoded. context_tokens: mean context of the batch.
    behind: tokens of the batch that the draft model has not seen. whole: draft and verify are one step. apart: they
    are steps of two lanes that can run at the same time. joins: without drafts, the batch is verified with all the
    others at once, and can go on with them as one batch.
    """

    batch: int
    beside: int
    context_tokens: float
    behind: int
    whole: bool
    apart: bool
    joins: bool = False


class LoadAdaptiveController:
    """Chooses k for each draft batch. One controller serves a whole engine.

    k: the last choice.
    """

    def __init__(self, rule: LoadAdaptiveDraftLength, times: StepTimes, verify_limit: int) -> None:
        """verify_limit: the largest verify batch, in requests."""
        self.rule = rule
        self.k = rule.start
        self._times, self._verify_limit = times, verify_limit
        self._recent: deque[tuple[int, int]] = deque()
        self._accepted, self._judged = rule.prior * rule.prior_drafts, float(rule.prior_drafts)
        self._without = 0  # batches in a row without drafts
        self._known: dict[tuple[int, int, int, int, bool, bool], list[tuple[int, float]]] = {}  # see _paces

    @property
    def acceptance(self) -> float:
        """The estimated probability that a draft is accepted, given that all before it in its step were."""
        return self._accepted / self._judged

    def observe(self, drafted: int, accepted: int, verify_queue: int) -> None:
        """Take note of one request's verification. drafted: drafts that were accepted or rejected."""
        if not drafted:
            return
        judged = accepted + (accepted < drafted)  # drafts behind a rejected one say nothing
        recent = self._recent
        recent.append((accepted, judged))
        self._accepted += accepted
        self._judged += judged
        if len(recent) > self.rule.window:
            old_accepted, old_judged = recent.popleft()
            self._accepted -= old_accepted
            self._judged -= old_judged

    def choose(self, load: Load, least: int = 0) -> int:
        """Return the k to draft a batch with, `least` or more. Changes nothing; report what was done to `chose`.

        Of draft lengths that promise about as much as the best, the shortest is taken: it wastes less at the end of
        outputs, and suffers less beside prefills. A change from or to 0 must promise more by the margin.
        """
        rule = self.rule
        low, high = max(rule.minimum, least), rule.maximum
        if low == 0 and rule.probe_every and self._without >= rule.probe_every:
            low = min(1, high)
        rates = self.rates(load)
        first = max(low, 1)
        best = max(rates[first:])
        drafting = next(k for k in range(first, high + 1) if rates[k] * (1 + rule.margin) >= best)
        if low:
            return drafting
        gain = best / rates[0]
        return drafting if gain > (1 / (1 + rule.margin) if self.k else 1 + rule.margin) else 0

    def chose(self, k: int) -> None:
        """Take note of the k that a batch was started with."""
        self.k = k
        self._without = 0 if k else self._without + 1

    def rates(self, load: Load) -> list[float]:
        """Return the expected tokens per second with each draft length from 0, and 0 for those below the minimum.

        Prefills that run meanwhile are left out. They take their share of the device whatever k is.
        """
        a, emitted, likely, rates = self.acceptance, 1.0, 1.0, []
        for requests, seconds in self._paces(load):
            rates.append(requests * emitted / seconds)
            likely *= a
            emitted += likely
        if load.joins and load.batch <= load.beside:  # the smaller group gives up the drafts of one step
            rates[0] = max(self.rates(load._replace(batch=load.batch + load.beside, beside=0, joins=False)))
        return rates

    def _paces(self, load: Load) -> list[tuple[int, float]]:
        """Return how many requests go on, and the seconds for it, with each draft length."""
        step = round(load.context_tokens / CONTEXT_STEP)
        key = load.batch, load.beside if load.apart else 0, step, load.behind, load.whole, load.apart
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            exact = load._replace(context_tokens=max(2.0, step * CONTEXT_STEP))
            lengths = range(self.rule.maximum + 1)
            found = [self._pace(exact, k) if k >= self.rule.minimum else (0, 1.0) for k in lengths]
            self._known[key] = found
        return found

    def _pace(self, load: Load, k: int) -> tuple[int, float]:
        """Return how many requests go on, and the seconds for it, with draft length k."""
        times, context = self._times, load.context_tokens
        n, m = load.batch, load.beside
        if not k and load.apart and not load.whole:
            n, m = min(n + m, self._verify_limit), 0  # whoever is verified next joins
        draft_s, verify_s = times.draft_s(n, k, context) if k else 0.0, times.verify_s(n, k, context)
        if k and load.behind:
            draft_s += times.catch_up_s(load.behind) / self.rule.payback
        if load.whole or not k:
            return n, draft_s + verify_s + times.host_s(n, load.whole and k > 0, True)
        draft_s += times.host_s(n, True, False)
        verify_s += times.host_s(n, False, True)
        if not (load.apart and m):
            return n, draft_s + verify_s
        drafts_s = draft_s + times.draft_s(m, k, context) + times.host_s(m, True, False)
        verifies_s = verify_s + times.verify_s(m, k, context) + times.host_s(m, False, True)
        rates = times.side_by_side(n, m, k, context)
        return n + m, max(_both_s(drafts_s, verifies_s, *rates), draft_s + verify_s)


def _both_s(one_s: float, other_s: float, one_rate: float, other_rate: float) -> float:
    """Return how long two lanes take for work of these solo seconds, if both run until one has nothing left."""
    both_s = min(one_s / one_rate, other_s / other_rate)
    return both_s + max(one_s - both_s * one_rate, other_s - both_s * other_rate)
