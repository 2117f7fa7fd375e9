"""Acceptance is read off tapes as verify steps would have met them."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.acceptance import acceptance_table, step_matches
from engines.errors import InputError


def test_a_tape_replays_step_by_step_after_the_prefills_token() -> None:
    # Entry 0 is prefill's. Steps of 2 drafts: (1, 1) -> 3 tokens, (0, 1) -> 1, (1, 0) -> 2; then too few remain.
    tape = np.array([-1, 1, 1, 0, 0, 1, 0, 1], dtype=np.int8)
    assert step_matches(tape, 2).tolist() == [2, 0, 1]
    table = acceptance_table([tape], 2)
    assert table["rate"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert table["alpha_mean"][0] == pytest.approx(3 / 5)  # three accepted, two rejected
    assert table["position"].tolist() == [1, 2]
    assert table["requests"].tolist() == [1, 1]


def test_alpha_of_independent_drafts_is_found_and_has_no_spread() -> None:
    rng = np.random.default_rng(1)
    table = acceptance_table([(rng.random(400) < 0.8).astype(np.int8) for _ in range(60)], 4)
    assert table["alpha_mean"][0] == pytest.approx(0.8, abs=0.01)
    assert table["rate"].tolist() == pytest.approx([0.8**i for i in range(1, 5)], abs=0.02)
    assert table["alpha_sd"][0] < 0.02


def test_a_spread_between_requests_is_told_from_sampling_noise() -> None:
    rng = np.random.default_rng(2)
    alphas = np.repeat([0.7, 0.9], 40)
    table = acceptance_table([(rng.random(300) < alpha).astype(np.int8) for alpha in alphas], 4)
    assert table["alpha_sd"][0] == pytest.approx(0.1, abs=0.02)


def test_outputs_too_short_for_a_step_are_refused() -> None:
    with pytest.raises(InputError, match="k = 4"):
        acceptance_table([np.ones(4, dtype=np.int8)], 4)
