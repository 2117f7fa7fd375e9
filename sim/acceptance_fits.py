"""Acceptance models made from what was recorded: from tapes, or from the figures in a profile."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calibrate.profile import Profile
from engines.errors import InputError
from sim.acceptance import UNKNOWN, AcceptanceSource, Independent, Markov, PerPosition, PerRequestSpread, matches

TapesByRequest = Mapping[int, np.ndarray]
PROFILE_MODELS = ("per-request spread", "per position", "independent")


def from_profile(profile: Profile, model: str = "per-request spread") -> AcceptanceSource:
    """One of PROFILE_MODELS with the profile's figures. Raises InputError for any other."""
    first = profile.acceptance.iloc[0]
    if model == "per-request spread":
        return PerRequestSpread(float(first["alpha_mean"]), float(first["alpha_sd"]))
    if model == "per position":
        return PerPosition(tuple(profile.acceptance["rate"].tolist()))
    if model == "independent":
        return Independent(float(first["alpha_mean"]))
    raise InputError("acceptance model", model, f"use one of {', '.join(PROFILE_MODELS)}")


def fit_independent(tapes: TapesByRequest) -> Independent:
    """The share of right drafts over all known positions."""
    return Independent(float(_all_known(tapes).mean()))


def fit_per_position(tapes: TapesByRequest, draft_length: int) -> PerPosition:
    """The rates of steps of `draft_length` drafts that follow one another through the tapes."""
    reached, steps = np.zeros(draft_length), 0
    for tape in tapes.values():
        right = matches(np.asarray(tape) == 1).tolist()
        position = 1
        while position + draft_length <= len(right):
            matched = min(right[position], draft_length)
            reached[:matched] += 1
            steps += 1
            position += matched + 1
    if not steps:
        raise InputError("tapes", f"{len(tapes)} tapes", f"none holds a whole step of {draft_length} drafts")
    return PerPosition(tuple((reached / steps).tolist()))


def fit_per_request_spread(tapes: TapesByRequest) -> PerRequestSpread:
    """Mean and spread of the requests' own shares; the sampling noise of short tapes (a binomial's variance) is
    taken out of the spread."""
    _all_known(tapes)
    known = [bits for tape in tapes.values() if len(bits := _known(tape))]
    alphas = np.array([bits.mean() for bits in known])
    noise = np.mean([a * (1 - a) / len(bits) for a, bits in zip(alphas, known, strict=True)])
    return PerRequestSpread(float(alphas.mean()), float(max(0.0, alphas.var() - noise) ** 0.5))


def fit_markov(tapes: TapesByRequest) -> Markov:
    """How often a right draft follows a right one, and a wrong one, at neighbouring known positions."""
    overall = float(_all_known(tapes).mean())
    pairs = np.concatenate([np.column_stack([tape[:-1], tape[1:]]) for tape in map(np.asarray, tapes.values())])
    pairs = pairs[(pairs != UNKNOWN).all(axis=1)]
    follows = [pairs[pairs[:, 0] == bit, 1] for bit in (1, 0)]
    return Markov(*(float(bits.mean()) if len(bits) else overall for bits in follows))


def _known(tape: np.ndarray) -> np.ndarray:
    bits = np.asarray(tape)
    return bits[bits != UNKNOWN]


def _all_known(tapes: TapesByRequest) -> np.ndarray:
    known = np.concatenate([np.zeros(0), *(_known(tape) for tape in tapes.values())])
    if not len(known):
        raise InputError("tapes", f"{len(tapes)} tapes", "no position is known; record a run with drafts")
    return known
