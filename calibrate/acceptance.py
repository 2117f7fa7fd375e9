"""Compute acceptance rates from the tapes of a run. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from engines.errors import InputError


def step_matches(tape: np.ndarray, k: int) -> np.ndarray:
    """Return the number of accepted drafts in each verify step at draft length k, [steps] int64.

    tape: int8, one entry per output token (1: the draft agrees). Steps that reach past the end of the output are left
    out, since the tape does not cover their last drafts.
    """
    matches, position = [], 1
    while position + k <= len(tape):
        wrong = np.flatnonzero(tape[position : position + k] != 1)
        matches.append(int(wrong[0]) if len(wrong) else k)
        position += matches[-1] + 1
    return np.array(matches, dtype=np.int64)


def conditional_acceptance(matches: np.ndarray, k: int) -> tuple[int, int]:
    """Return (accepted, judged) drafts. A draft is judged if all before it in its step were accepted."""
    accepted = int(matches.sum())
    return accepted, accepted + int((matches < k).sum())


def acceptance_table(tapes: Iterable[np.ndarray], k: int) -> pd.DataFrame:
    """Return the acceptance table of a profile at draft length k.

    position, rate: probability that the first `position` drafts of a step are all accepted (as in vLLM's
    synthetic_acceptance_rates). requests: number of requests with at least one full step. alpha_mean: acceptance of a
    draft given that all before it in its step were accepted. alpha_sd: its standard deviation between requests
    without sampling noise (method of moments). Raises InputError if the tapes are too short for a single step.
    """
    matches = [m for m in (step_matches(tape, k) for tape in tapes) if len(m)]
    if not matches:
        raise InputError("tapes", len(matches), f"no output is longer than k = {k}; record longer outputs")
    steps = np.concatenate(matches)
    accepted, judged = conditional_acceptance(steps, k)
    alpha = accepted / judged
    each = np.array([conditional_acceptance(m, k) for m in matches], dtype=float)
    alphas, noise = each[:, 0] / each[:, 1], alpha * (1 - alpha) / each[:, 1]
    spread = float(np.mean((alphas - alpha) ** 2 - noise))
    positions = np.arange(1, k + 1)
    return pd.DataFrame(
        {
            "position": positions,
            "rate": [(steps >= position).mean() for position in positions],
            "requests": len(matches),
            "alpha_mean": alpha,
            "alpha_sd": np.sqrt(max(spread, 0.0)),
        }
    )
