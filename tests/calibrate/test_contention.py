"""The contention function recovers known truths, and predicts a measured GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibrate.contention import NoContention, RunningSegment, fit_contention, leave_one_group_out
from engines.architecture import Segment
from engines.errors import InputError
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
            "batch": 1,
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
