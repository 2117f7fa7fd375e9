"""Rank candidates: the Pareto front, and the probability that each of the finalists is the best."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000


def pareto_front(gain: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Return which points no other point beats: more gain at no more cost, or less cost at no less gain. [points]

    Points with nan are never on the front.
    """
    front = np.zeros(len(gain), dtype=bool)
    lowest, last = np.inf, (np.nan, np.nan)
    for i in np.lexsort((cost, -gain)):
        if np.isnan(gain[i]) or np.isnan(cost[i]):
            continue
        if cost[i] < lowest or (gain[i], cost[i]) == last:
            front[i], lowest, last = True, cost[i], (gain[i], cost[i])
    return front


def reached(attainment: np.ndarray, share: float) -> np.ndarray:
    """Return the highest step at which, and below which, the attainment [finalists, steps] is at least `share`.

    -1 if there is none.
    """
    return np.cumprod(attainment >= share, axis=1).sum(axis=1) - 1


def scores(objective: np.ndarray, attainment: np.ndarray, share: float) -> np.ndarray:
    """Return one score per finalist; the highest is the best.

    objective, attainment: [finalists, steps], means over repeats. The score is the objective at the step that is
    `reached`; -inf if there is none. Attainment decides between equal objectives, since rates of a grid often are.
    """
    step, rows = reached(attainment, share), np.arange(len(objective))
    return np.where(step >= 0, objective[rows, step] * (1 + 1e-6 * attainment[rows, step]), -np.inf)


def probability_best(objective: np.ndarray, attainment: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Return, per finalist, in which fraction of bootstrap samples of the repeats it has the highest score.

    objective, attainment: [finalists, steps, repeats]. The same repeats are drawn for all finalists, since they met
    the same load in each. Samples in which none meets the SLO count for none.
    """
    generator = np.random.default_rng(seed)
    finalists, _, repeats = objective.shape
    won = np.zeros(finalists)
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, repeats, repeats)
        found = scores(objective[:, :, drawn].mean(axis=2), attainment[:, :, drawn].mean(axis=2), share)
        if np.isfinite(found).any():
            won += (found == found.max()) / (found == found.max()).sum()
    return won / RESAMPLES
