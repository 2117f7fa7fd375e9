"""Candidates proposed by Optuna's tree-structured Parzen estimator (Bergstra et al., NIPS 2011)."""

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


class Proposals:
    """Proposes candidates and learns from their objectives. The same seed and answers give the same proposals.

    Raises InputError if Optuna is not installed.
    """

    def __init__(self, search: Search) -> None:
        try:
            import optuna
        except ImportError as error:
            remedy = "a search needs Optuna; install the extra: pip install 'pdv[search]'"
            raise InputError("search", search.name, remedy) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search, self._failed = search, optuna.trial.TrialState.FAIL
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about features that may still change
            sampler = optuna.samplers.TPESampler(
                seed=search.seed, multivariate=True, constant_liar=True, constraints_func=_constraints,
                n_startup_trials=max(8, search.trials // 4),
            )  # fmt: skip
            self._study = optuna.create_study(sampler=sampler, direction="maximize")

    def ask(self, count: int) -> tuple[list[Any], list[dict[str, Any]]]:
        """Return trials, and the settings of each: `architecture` by name, and a value for all of the space."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trials = [self._study.ask() for _ in range(count)]
            names = list(self._search.named())
            return trials, [
                {
                    "architecture": trial.suggest_categorical("architecture", names),
                    **{name: _suggested(trial, name, draw) for name, draw in self._search.space.items()},
                }
                for trial in trials
            ]

    def tell(self, trials: Sequence[Any], judged: Sequence[Mapping[str, Any]]) -> None:
        """Learn the objectives and shares of requests that met the SLO (experiments.search.search.judge)."""
        for trial, row in zip(trials, judged, strict=True):
            short = self._search.slo_share - row["slo_attainment"] if self._search.has_slo else 0.0
            trial.set_user_attr(SHORTFALL, 1.0 if math.isnan(short) else short)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if row["status"] == FAILED:
                    self._study.tell(trial, state=self._failed)
                else:
                    self._study.tell(trial, row["objective"])


def _suggested(trial: Any, name: str, draw: Draw) -> Any:
    if draw.choice is not None:
        return trial.suggest_categorical(name, draw.choice)
    low, high = draw.uniform or draw.log_uniform or (0, 0)
    whole = isinstance(low, int) and isinstance(high, int)
    return (trial.suggest_int if whole else trial.suggest_float)(name, low, high, log=draw.log_uniform is not None)


def _constraints(trial: Any) -> tuple[float]:
    return (float(trial.user_attrs.get(SHORTFALL, 0.0)),)
