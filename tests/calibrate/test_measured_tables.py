"""What calibration writes down of its measurements, from times that are known."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from calibrate import measure_contention as measuring  # noqa: E402
from calibrate.measure_contention import measure_contention  # noqa: E402
from calibrate.overlap import Span  # noqa: E402
from calibrate.stage_costs import Grid, _row  # noqa: E402
from calibrate.workbench import Workbench  # noqa: E402
from engines.live.model.pairs import Pair, load_pair  # noqa: E402
from engines.policy.segment_shape import SegmentShape  # noqa: E402

pytestmark = pytest.mark.live
DRAFT, VERIFY = SegmentShape.draft(1, 2, 16), SegmentShape.verify(1, 2, 16)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("embedded")


def test_a_stage_is_described_by_the_quantiles_of_its_times() -> None:
    """0, 1, ... 100 ms, in any order: the quantile of 5% is 5 ms, and so on."""
    row = _row(VERIFY, 7, [(37 * i % 101) / 1e3 for i in range(101)])
    assert row == pytest.approx(
        {
            **VERIFY.columns, "kernels": 7, "repeats": 101,
            "p05_ms": 5.0, "p25_ms": 25.0, "p50_ms": 50.0, "p75_ms": 75.0, "p95_ms": 95.0, "mean_ms": 50.0,
        }
    )  # fmt: skip


@pytest.mark.parametrize(("together_s", "rate"), [(1.0, 1.0), (1.25, 0.8), (0.97, 1.0)])
def test_a_stream_is_never_faster_beside_another_than_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, together_s: float, rate: float
) -> None:
    """Calls of 1 s alone that take less beside others were measured at a better moment, not sped up."""

    def spans(lanes: list[measuring.Lane], seconds: float) -> list[list[Span]]:
        call_s = 1.0 if len(lanes) == 1 else together_s
        return [[(i * call_s, (i + 1) * call_s) for i in range(8)] for _ in lanes]

    monkeypatch.setattr(measuring, "_spans", spans)
    monkeypatch.setattr(Workbench, "count_kernels", lambda *args: 3)
    table = measure_contention(pair, Grid((1,), (2,), (16,), (16,)), [(DRAFT, VERIFY)], 0.0, lambda *args: None)
    assert table["rate"].tolist() == pytest.approx([rate, rate])
    assert table["solo_ms"].tolist() == pytest.approx([1000.0, 1000.0])
    assert table["segment"].tolist() == ["draft", "verify"]
