"""Kernels that overlap are given the time by which they move a stage on."""

from __future__ import annotations

import pandas as pd
import pytest

from experiments.checks.kernel_profile import Kernel, advances, report, short

STAGE = [
    Kernel("gate", 10.0, 30.0),
    Kernel("down", 20.0, 45.0),  # began while gate ran
    Kernel("gate", 44.0, 60.0),
    Kernel("feed", 70.0, 71.0),  # 10 us after all others had ended
    Kernel("short", 70.2, 70.5),  # ended before the one that began before it
]


def test_advances_and_what_was_idle_sum_to_the_time_from_the_first_start_to_the_last_end() -> None:
    table = advances(STAGE[::-1]).set_index("kernel")
    assert table["advance_us"].to_dict() == {"gate": 35.0, "down": 15.0, "feed": 1.0, "short": 0.0, "idle": 10.0}
    assert table["advance_us"].sum() == 61.0
    assert table.loc["gate", "launches"] == 2
    assert table.loc["gate", "duration_us"] == 36.0
    assert [table.index[0], table.index[-1]] == ["gate", "idle"]


def test_a_report_leaves_idle_out_of_what_the_kernels_took() -> None:
    rows = advances(STAGE).assign(segment="verify", batch_size=8, stage_ms=0.06)
    assert report(pd.DataFrame(rows)).startswith("verify, batch 8: 0.06 ms; kernels under the profiler: 0.05 ms")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gate", "gate"),
        ("nvjet_sm90_tst_192x40_64x7_4x1_v_bz_TNT", "nvjet_sm90_tst_192x40_64x7_4x1_v_bz_TNT"),
        ("void at::native::reduce_kernel<512, at::native::Sum<float>>(int)", "reduce_kernel<512, Sum<float>>"),
    ],
)
def test_names_are_short(name: str, expected: str) -> None:
    assert short(name) == expected
