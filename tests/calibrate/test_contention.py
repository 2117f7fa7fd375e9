"""The contention function recovers known truths, and predicts a measured GPU."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibrate.contention import (
    ContentionModel,
    NoContention,
    RunningSegment,
    fit_contention,
    leave_one_group_out,
)
from engines.errors import InputError
from engines.policy.architecture import Segment
from tests.calibrate.profiles import contention, fair_shares, running

H100 = Path(__file__).parents[2].parent / "shared" / "contention-h100.csv"
KINDS = {"d": (Segment.DRAFT, 4 * 22 * 17), "v": (Segment.VERIFY, 32 * 17), "p": (Segment.PREFILL_TARGET, 54 * 17)}


def turns(gamma: float, bonus: float = 0.0) -> pd.DataFrame:
    """A GPU that shares by kernel duration ** gamma."""
    rng = np.random.default_rng(1)
    kinds = (Segment.DRAFT, Segment.VERIFY, Segment.PREFILL_TARGET)
    groups = {}
    for number in range(12):
        chosen = kinds if number % 3 == 2 else tuple(rng.permutation(np.array(kinds))[:2])
        kernel_ms = rng.uniform(0.005, 0.03, len(chosen))
        rates = (1 + bonus) * kernel_ms**gamma / (kernel_ms**gamma).sum()
        streams = zip(map(Segment, chosen), kernel_ms.tolist(), rates.tolist(), strict=True)
        groups[f"{number}"] = list(streams)
    return contention(groups)


def by_hand(**changes: Any) -> ContentionModel:
    """Turns by kernel duration, a fill of 0.8 and the same for all kinds, unless told otherwise."""
    of_kind = dict.fromkeys(Segment, 0.0)
    given = {
        "gamma": 1.0, "log_fill": math.log(0.8), "beta": 0.0, "spread": 1.0, "typical_ms": 0.02,
        "measured_ms": (0.01, 0.04), "log_weight_of": of_kind, "log_fill_of": of_kind, "residuals": pd.DataFrame(),
    }  # fmt: skip
    return ContentionModel(**{**given, **changes})


DRAFT, LONG_DRAFT = RunningSegment(Segment.DRAFT, 4, 0.01), RunningSegment(Segment.DRAFT, 4, 0.03)
VERIFY, ENDLESS = RunningSegment(Segment.VERIFY, 4, 0.02), RunningSegment(Segment.VERIFY, 4, 0.4)


@pytest.mark.parametrize(
    ("changes", "running", "rates"),
    [
        # Three kernels of four go to the long draft; together they do 1 / 0.8 of what one does.
        ({}, [DRAFT, LONG_DRAFT], [0.25 / 0.8, 0.75 / 0.8]),
        ({"gamma": 0.5}, [VERIFY, RunningSegment(Segment.VERIFY, 4, 0.08)], [1 / 3 / 0.8, 2 / 3 / 0.8]),
        # A third stream multiplies the gain once more, or by the power of its spread; a fill above 1 is a loss.
        ({}, [VERIFY] * 3, [1 / 3 / 0.8**2] * 3),
        ({"spread": 0.5}, [VERIFY] * 3, [1 / 3 / 0.8**2**0.5] * 3),
        ({"log_fill": math.log(1.6)}, [VERIFY] * 2, [0.5 / 1.6] * 2),
        # The fill follows the duration, but not beyond what was measured; the shares do.
        ({"beta": 1.0}, [LONG_DRAFT] * 2, [0.5 / (0.8 * 1.5)] * 2),
        ({"beta": 1.0}, [ENDLESS] * 2, [0.5 / (0.8 * 2)] * 2),
        ({"beta": 1.0, "measured_ms": (0.02, 0.04)}, [DRAFT] * 2, [0.5 / 0.8] * 2),
        ({"log_fill": 0.0}, [VERIFY, ENDLESS], [1 / 21, 20 / 21]),
        # Each kind has a claim and a fill of its own; the fill of all is the mean by their shares.
        ({"log_weight_of": {**dict.fromkeys(Segment, 0.0), Segment.VERIFY: math.log(1.5)}}, [DRAFT, VERIFY],
         [0.25 / 0.8, 0.75 / 0.8]),
        ({"log_fill_of": {**dict.fromkeys(Segment, 0.0), Segment.VERIFY: math.log(1.25)}}, [DRAFT, VERIFY],
         [1 / 3 / (0.8 / 3 + 2 / 3), 2 / 3 / (0.8 / 3 + 2 / 3)]),
        # No stream is faster than alone.
        ({"log_fill": math.log(0.4)}, [VERIFY] * 2, [1.0, 1.0]),
    ],
)  # fmt: skip
def test_rates_by_hand(changes: dict[str, Any], running: list[RunningSegment], rates: list[float]) -> None:
    assert by_hand(**changes).rates(running) == pytest.approx(rates)


def test_a_fit_finds_the_truth_that_a_table_was_made_of() -> None:
    truth = by_hand(gamma=0.7, log_fill=-0.1, beta=0.3, spread=0.6, measured_ms=(0.001, 1.0))
    table = turns(0.7)
    for _, group in table.groupby("group"):
        table.loc[group.index, "rate"] = truth.rates(running(group))
    model = fit_contention(table)
    assert model.residuals["error"].abs().max() < 2e-3
    assert model.gamma == pytest.approx(0.7, abs=0.05)
    tau = table["solo_ms"] / table["kernels"]
    assert model.measured_ms == pytest.approx((tau.min(), tau.max()))
    assert model.typical_ms == pytest.approx(math.exp(np.log(tau).mean()))
    error = model.residuals["predicted"] - model.residuals["rate"]
    assert model.residuals["error"].tolist() == pytest.approx(error.tolist())
    assert model.mean_absolute_error == pytest.approx(error.abs().mean())


def test_a_group_left_out_is_predicted_by_the_others() -> None:
    """All groups but one follow one law: that one is missed by as much as it differs, the others hardly."""
    table = pd.concat([turns(1.0), contention({"alone": [(Segment.DRAFT, 0.02, 1.0)]})], ignore_index=True)
    odd = table["group"] == "4"
    table.loc[odd, "rate"] *= 0.5
    left_out = leave_one_group_out(table).set_index("group")
    assert len(left_out) == len(table) - 1  # a group of one stream says nothing
    assert left_out["error"].tolist() == pytest.approx((left_out["predicted"] - left_out["rate"]).tolist())
    assert left_out.loc["4", "error"].tolist() == pytest.approx(left_out.loc["4", "rate"].tolist(), rel=0.2)
    assert left_out.drop("4")["error"].abs().mean() < 0.1


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_shares_follow_kernel_duration(gamma: float) -> None:
    model = fit_contention(turns(gamma))
    assert model.gamma == pytest.approx(gamma, abs=0.02)
    assert model.mean_absolute_error < 0.002
    rates = model.rates([RunningSegment(Segment.DRAFT, 4, 0.01), RunningSegment(Segment.VERIFY, 4, 0.02)])
    assert rates[1] / rates[0] == pytest.approx(2**gamma, rel=0.02)
    assert sum(rates) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("total", [0.8, 1.3, 1.9])
def test_cores_that_are_shared_fairly(total: float) -> None:
    """A CPU: equal rates, whose sum can be far above 1, or below where threads hinder each other."""
    model = fit_contention(fair_shares(total))
    assert model.mean_absolute_error < 0.002
    two = [RunningSegment(Segment.DRAFT, 4, 0.02), RunningSegment(Segment.DRAFT, 4, 0.02)]
    assert model.rates(two) == pytest.approx([total / 2] * 2, abs=0.02)  # never measured together


def test_one_alone_runs_at_full_speed_and_none_is_faster() -> None:
    model = fit_contention(fair_shares(1.9))
    assert model.rates([RunningSegment(Segment.DRAFT, 4, 0.02)]) == [1.0]
    lopsided = [RunningSegment(Segment.VERIFY, 4, 5.0), RunningSegment(Segment.DRAFT, 4, 0.0001)]
    assert all(0 < rate <= 1 for rate in model.rates(lopsided))


def test_what_was_never_measured_gets_what_its_number_of_streams_says() -> None:
    model = fit_contention(fair_shares(1.2))
    unseen = RunningSegment(Segment.PREFILL_DRAFT, 1, 0.02)
    assert model.rates([unseen, unseen]) == pytest.approx([0.6, 0.6], abs=0.02)
    assert model.rates([unseen] * 3) == pytest.approx([0.4] * 3, abs=0.02)


def test_order_does_not_matter() -> None:
    table = turns(0.7, bonus=0.1)
    model = fit_contention(table)
    three = running(table[table["group"] == "2"])
    assert model.rates(three[::-1]) == pytest.approx(model.rates(three)[::-1])


def test_the_model_predicts_what_the_fit_saw() -> None:
    model = fit_contention(turns(0.7, bonus=0.1))
    for _, group in model.residuals.groupby("group"):
        assert model.rates(running(group)) == pytest.approx(group["predicted"].tolist())


def test_no_contention_only_when_asked() -> None:
    two = [RunningSegment(Segment.DRAFT, 4, 0.02)] * 2
    assert NoContention().rates(two) == [1.0, 1.0]
    with pytest.raises(InputError, match="no two streams were measured together"):
        fit_contention(contention({"alone": [(Segment.DRAFT, 0.02, 1.0)]}))


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("rate", 1e-15, "rate = 1e-15"),
        ("rate", float("nan"), "rate = nan"),
        ("rate", float("inf"), "rate = inf"),
        ("solo_ms", 1e-300, "solo_ms / kernels = "),
        ("solo_ms", float("inf"), "solo_ms / kernels = inf"),
        ("solo_ms", -1.0, "solo_ms / kernels = -"),
        ("kernels", 1e300, "solo_ms / kernels = "),
        ("kernels", 0, "solo_ms / kernels = inf"),
    ],
)
def test_what_cannot_have_been_measured_is_refused_with_its_row(column: str, value: float, says: str) -> None:
    table = fair_shares(1.2)
    table[column] = table[column].astype(float)
    table.loc[2, column] = value
    with pytest.raises(InputError) as refused:
        fit_contention(table)
    group, segment = table["group"][2], table["segment"][2]
    assert str(refused.value).startswith(f"contention line 4 (group {group}, {segment}) {says}")


def test_the_widest_tables_that_are_taken_can_be_fitted() -> None:
    rng = np.random.default_rng(3)
    for size in (2, 3, 12):
        kernel_ms, rates = 10 ** rng.uniform(-9, 9, size), 10 ** rng.uniform(-4, 0, size)
        kinds = [list(Segment)[i % len(Segment)] for i in range(size)]
        streams = list(zip(kinds, kernel_ms.tolist(), rates.tolist(), strict=True))
        model = fit_contention(contention({"all": streams}))
        assert np.isfinite(model.mean_absolute_error)


def test_where_the_fit_has_no_rate_to_give_it_says_so() -> None:
    hindering = replace(fit_contention(fair_shares(0.8)), log_fill=0.5, spread=2.0)
    draft = RunningSegment(Segment.DRAFT, 4, 0.02)
    assert hindering.rates([draft] * 3)[0] > 0
    with pytest.raises(InputError, match=r"contention rate = .*calibrate such streams together, or simulate without"):
        hindering.rates([draft] * 8)


def test_any_number_of_streams_that_hardly_fill_the_device_runs_at_full_speed() -> None:
    model = replace(fit_contention(fair_shares(1.9)), log_fill=-3.0, spread=3.0)
    assert model.rates([RunningSegment(Segment.DRAFT, 4, 0.02)] * 200) == [1.0] * 200


@pytest.mark.skipif(not H100.is_file(), reason="../shared/contention-h100.csv is not here")
def test_measured_h100() -> None:
    """25 pairs and triples: within 0.021 a rate on average, and within 0.026 for groups the fit has not seen."""
    measured = pd.read_csv(H100)
    kinds = [KINDS[stream[0]] for stream in measured["stream"]]
    table = pd.DataFrame(
        {
            "group": measured["together"],
            "segment": [str(segment) for segment, _ in kinds],
            "batch_size": 1,
            "draft_length": 0,
            "tokens": 1,
            "solo_ms": measured["solo_ms"],
            "kernels": [kernels for _, kernels in kinds],
            "rate": measured["rate"],
        }
    )
    model = fit_contention(table)
    assert model.mean_absolute_error < 0.021
    assert model.residuals["error"].abs().max() < 0.07
    assert 0.6 < model.gamma < 1.0
    assert leave_one_group_out(table)["error"].abs().mean() < 0.026
