"""Candidates proposed by Optuna's tree-structured Parzen estimator (Bergstra et al., NIPS 2011), then neighbours."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from engines.errors import InputError
from experiments.search.config import Search
from experiments.sweep.axes import Draw
from experiments.sweep.table import FAILED

SHORTFALL = "shortfall"  # attribute of a trial: by how much it misses the SLO
RANDOM, LOCAL = 4, 3
"""One candidate in so many is random (the first ones), and a neighbour of the best so far (the last ones)."""


class Proposals:
    """Proposes candidates and learns from their objectives. The same seed and answers give the same proposals.

    A neighbour differs from the best candidate so far in one setting (Draw.neighbours). Once all neighbours were
    tried, the estimator goes on. Raises InputError if Optuna is not installed.
    """

    def __init__(self, search: Search) -> None:
        try:
            import optuna
        except ImportError as error:
            remedy = "a search needs Optuna; install the extra: pip install 'pdv[search]'"
            raise InputError("search", search.name, remedy) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search, self._failed = search, optuna.trial.TrialState.FAIL
        self._draws = {"architecture": Draw(choice=list(search.named())), **search.space}
        self._tried: list[dict[str, Any]] = []
        self._best: tuple[float, float, Mapping[str, Any]] = (-math.inf, -math.inf, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about features that may still change
            sampler = optuna.samplers.TPESampler(
                seed=search.seed, multivariate=True, constant_liar=True, constraints_func=_constraints,
                n_startup_trials=max(8, search.trials // RANDOM),
            )  # fmt: skip
            self._study = optuna.create_study(sampler=sampler, direction="maximize")

    def ask(self, count: int) -> tuple[list[Any], list[dict[str, Any]]]:
        """Return trials, and the settings of each: `architecture` by name, and a value for all of the space."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if len(self._tried) >= self._search.trials - self._search.trials // LOCAL:
                for candidate in self._neighbours()[:count]:
                    self._study.enqueue_trial({n: _place(draw, candidate[n]) for n, draw in self._draws.items()})
            trials = [self._study.ask() for _ in range(count)]
            chosen = [{n: _suggested(trial, n, draw) for n, draw in self._draws.items()} for trial in trials]
        self._tried += chosen
        return trials, chosen

    def tell(self, trials: Sequence[Any], judged: Sequence[Mapping[str, Any]]) -> None:
        """Learn the objectives and shares of requests that met the SLO (experiments.search.search.judge)."""
        for trial, row in zip(trials, judged, strict=True):
            short = self._search.slo_share - row["slo_attainment"] if self._search.has_slo else 0.0
            short = 1.0 if math.isnan(short) else short
            trial.set_user_attr(SHORTFALL, short)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if row["status"] == FAILED:
                    self._study.tell(trial, state=self._failed)
                    continue
                self._study.tell(trial, row["objective"])
            self._best = max(self._best, (-max(short, 0.0), row["objective"], row), key=lambda scored: scored[:2])

    def _neighbours(self) -> list[dict[str, Any]]:
        """Return what differs in one setting from the best so far and was not tried."""
        best = {name: self._best[2].get(name) for name in self._draws}
        if None in best.values():  # all have failed
            return []
        found = [{**best, name: value} for name, draw in self._draws.items() for value in draw.neighbours(best[name])]
        return [candidate for candidate in found if candidate not in self._tried]


def _place(draw: Draw, value: Any) -> Any:
    """Return a value as Optuna knows it: ordered choices by their place."""
    return draw.choice.index(value) if draw.choice is not None and draw.ordered else value


def _suggested(trial: Any, name: str, draw: Draw) -> Any:
    if draw.choice is not None:
        if draw.ordered:
            return draw.choice[trial.suggest_int(name, 0, len(draw.choice) - 1)]
        return trial.suggest_categorical(name, draw.choice)
    low, high = draw.uniform or draw.log_uniform or (0, 0)
    whole = isinstance(low, int) and isinstance(high, int)
    return (trial.suggest_int if whole else trial.suggest_float)(name, low, high, log=draw.log_uniform is not None)


def _constraints(trial: Any) -> tuple[float]:
    return (float(trial.user_attrs.get(SHORTFALL, 0.0)),)
