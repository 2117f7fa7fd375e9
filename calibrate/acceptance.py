"""How often drafts are accepted, from the tapes of a run (torch-free)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from engines.errors import InputError


def step_matches(tape: np.ndarray, k: int) -> np.ndarray:
    """Drafts that matched in each verify step that this tape leads to at draft length k, [steps] int64.

    tape: int8, one entry an output token (1: the draft model would have proposed it). Steps that reach past the
    output's end are left out: what their last drafts were worth is not on the tape.
    """
    matches, position = [], 1
    while position + k <= len(tape):
        wrong = np.flatnonzero(tape[position : position + k] != 1)
        matches.append(int(wrong[0]) if len(wrong) else k)
        position += matches[-1] + 1
    return np.array(matches, dtype=np.int64)


def conditional_acceptance(matches: np.ndarray, k: int) -> tuple[int, int]:
    """(accepted, judged): a draft is judged if all before it in its step were accepted."""
    accepted = int(matches.sum())
    return accepted, accepted + int((matches < k).sum())


def acceptance_table(tapes: Iterable[np.ndarray], k: int) -> pd.DataFrame:
    """The profile's acceptance table at draft length k.

    position, rate: the probability that the first `position` drafts of a step are all accepted (what vLLM's
    synthetic_acceptance_rates means). requests; alpha_mean: acceptance of a draft given that all before it in
    its step were accepted; alpha_sd: how much it differs between requests, sampling noise taken out (method of
    moments). Raises InputError if the tapes are too short for a single step.
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
