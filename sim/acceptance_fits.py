"""Acceptance models with the figures of a profile, or of tapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from calibrate.acceptance import acceptance_table
from calibrate.profile import Profile
from engines.errors import InputError
from sim.acceptance import UNKNOWN, AcceptanceSource, Independent, Markov, PerPosition, PerRequestSpread

MODELS: dict[str, Callable[[pd.DataFrame], AcceptanceSource]] = {
    "per-request spread": lambda table: PerRequestSpread(float(table["alpha_mean"][0]), float(table["alpha_sd"][0])),
    "per position": lambda table: PerPosition(tuple(table["rate"].tolist())),
    "independent": lambda table: Independent(float(table["alpha_mean"][0])),
}


def from_profile(profile: Profile, model: str = "per-request spread") -> AcceptanceSource:
    """One of MODELS with a profile's figures. Raises InputError for any other."""
    return _model(model)(profile.acceptance)


def fit_tapes(tapes: Mapping[int, np.ndarray], model: str, draft_length: int) -> AcceptanceSource:
    """One of MODELS with the figures that calibration would find in these tapes at this draft length.

    Raises InputError for any other model, and for tapes too short for a step.
    """
    return _model(model)(acceptance_table(tapes.values(), draft_length))


def fit_markov(tapes: Mapping[int, np.ndarray]) -> Markov:
    """How often a right draft follows a right one, and a wrong one, at neighbouring known positions; a kind of
    neighbour that never occurs counts as the other. Raises InputError if no two neighbours are known."""
    bits = [np.asarray(tape) for tape in tapes.values()]
    pairs = np.concatenate([np.empty((0, 2)), *(np.column_stack([tape[:-1], tape[1:]]) for tape in bits)])
    pairs = pairs[(pairs != UNKNOWN).all(axis=1)]
    if not len(pairs):
        raise InputError(
            "tapes", f"{len(bits)} tapes", "no two neighbouring positions are known; record longer outputs"
        )
    follows = [pairs[pairs[:, 0] == bit, 1] for bit in (1, 0)]
    return Markov(*(float((after if len(after) else pairs[:, 1]).mean()) for after in follows))


def _model(name: str) -> Callable[[pd.DataFrame], AcceptanceSource]:
    if name not in MODELS:
        raise InputError("acceptance model", name, f"use one of {', '.join(MODELS)}")
    return MODELS[name]
