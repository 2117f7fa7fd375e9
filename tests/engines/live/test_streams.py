"""The clock of a device, told on the host's."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from engines.live.device.streams import DeviceClock


def test_a_device_clock_that_drifts_is_told_right_after_two_anchors() -> None:
    drift = 25e-6  # the host passes 1 + 25e-6 seconds per second of the device

    def host_s(device_s: float) -> float:
        return 100.0 + device_s * (1 + drift)

    clock = DeviceClock(host_s(0.0))
    assert clock.host_s(10.0) == pytest.approx(host_s(10.0) - 10 * drift, abs=1e-9)  # one anchor: no drift known
    clock.anchor(host_s(15.0), 15.0)
    assert clock.host_s(20.0) == pytest.approx(host_s(35.0), abs=1e-9)
    clock.anchor(host_s(15.5) + 1e-4, 0.5)  # too short a time to tell a drift by: this reading is 0.1 ms late
    assert clock.host_s(1.0) == pytest.approx(host_s(16.5) + 1e-4, abs=1e-9)
