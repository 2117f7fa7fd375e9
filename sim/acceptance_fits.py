"""Fit acceptance models to a profile or to tapes."""

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
    """Return one of MODELS with the parameters of a profile. Raises InputError for an unknown model."""
    return _model(model)(profile.acceptance)


def fit_tapes(tapes: Mapping[int, np.ndarray], model: str, draft_length: int) -> AcceptanceSource:
    """Return one of MODELS with the parameters that calibration would find in these tapes at this draft length.

    Raises InputError for an unknown model, and for tapes that are too short for a step.
    """
    return _model(model)(acceptance_table(tapes.values(), draft_length))


def fit_markov(tapes: Mapping[int, np.ndarray]) -> Markov:
    """Fit how often a right draft follows a right one, and a wrong one, at adjacent known positions.

    If right drafts (or wrong ones) are never followed by a known position, the rate after all drafts is used. Raises
    InputError if no two adjacent positions are known.
    """
    bits = [np.asarray(tape) for tape in tapes.values()]
    pairs = np.concatenate([np.empty((0, 2)), *(np.column_stack([tape[:-1], tape[1:]]) for tape in bits)])
    pairs = pairs[(pairs != UNKNOWN).all(axis=1)]
    if not len(pairs):
        raise InputError("tapes", f"{len(bits)} tapes", "no two adjacent positions are known; record longer outputs")
    follows = [pairs[pairs[:, 0] == bit, 1] for bit in (1, 0)]
    return Markov(*(float((after if len(after) else pairs[:, 1]).mean()) for after in follows))


def _model(name: str) -> Callable[[pd.DataFrame], AcceptanceSource]:
    if name not in MODELS:
        raise InputError("acceptance model", name, f"use one of {', '.join(MODELS)}")
    return MODELS[name]
