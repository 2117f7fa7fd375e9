"""The study of acceptance models: what is fitted, and that its errors are those of the models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from experiments.bench.acceptance import METRICS, NOISE, TAPE, errors, models_of, pair_of, rows_of
from sim.acceptance import Independent, PerPosition
from sim.costs import CostModel
from tests.experiments import synthetic


def test_models_have_the_acceptance_length_of_the_tapes() -> None:
    bits = np.random.default_rng(1).random((50, 200)) < 0.7
    tapes = {number: row.astype(np.int8) for number, row in enumerate(bits)}
    models = models_of(tapes, 4)
    positions, length, independent = (models[name] for name in ("per position", "length", "independent"))
    assert isinstance(positions, PerPosition)
    assert isinstance(length, PerPosition)
    assert isinstance(independent, Independent)
    assert sum(length.rates) == pytest.approx(sum(positions.rates))
    assert length.rates[0] == 1
    assert length.rates[2:] == (0, 0)
    assert independent.alpha == pytest.approx(0.7, abs=0.02)


def test_every_model_is_simulated_with_every_seed() -> None:
    live = synthetic.live("pdv")
    masks = {request: np.ones(50, dtype=np.int8) for request in live.tapes}
    rows = pd.DataFrame(rows_of(live, masks, CostModel(synthetic.profile()), range(2)))
    assert set(rows["tapes"]) == {pair_of(live), "masks"}
    assert (rows.groupby(["tapes", "model"]).size() == 2).all()
    text = rows[rows["tapes"] == "masks"].set_index(["model", "seed"])["throughput"]
    assert text["independent"].tolist() == text[TAPE].tolist()  # drafts that are always right leave nothing to draw
    other = rows[rows["tapes"] == pair_of(live)].set_index(["model", "seed"])["throughput"]
    assert other["independent"].tolist() != other[TAPE].tolist()


def test_errors_are_relative_to_the_tapes_and_averaged_over_runs() -> None:
    made = []
    for run, taped, drawn in (("a", 100.0, 110.0), ("b", 200.0, 180.0)):
        for seed, part in ((0, 0.9), (1, 1.1)):
            for model, value in ((TAPE, taped), ("independent", drawn)):
                made.append({"tapes": "t", "run": run, "model": model, "seed": seed,
                             **dict.fromkeys(METRICS.values(), value * part)})  # fmt: skip
    found = errors(pd.DataFrame(made))
    assert found.loc[("t", "independent"), ("P95", "bias")] == pytest.approx(0.0)
    assert found.loc[("t", "independent"), ("P95", "absolute")] == pytest.approx(10.0)
    assert found.loc[("t", NOISE), ("P95", "absolute")] == pytest.approx(10 * 2**0.5)


def test_runs_of_a_permutation_pair_are_told_apart_by_alpha() -> None:
    live = synthetic.live("pdv")
    other = dataclasses.replace(
        live, info={**live.info, "pair": "permutation:llama2-7b+tinyllama-1.1b:alpha=0.3,0.6"}
    )
    assert pair_of(other) == "alpha 0.3, 0.6"
    assert pair_of(dataclasses.replace(live, info={**live.info, "pair": "embedded"})) == "embedded"
