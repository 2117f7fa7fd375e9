"""The soak's checks hold on the CPU."""

from __future__ import annotations

import pytest

from engines.policy.architecture import PDV

pytestmark = pytest.mark.live


def test_a_short_soak_loses_nothing() -> None:
    pytest.importorskip("torch")
    from experiments.checks.soak import soak

    found = soak(PDV.replace(slots=8), "cpu", requests=200, clients=12)
    assert int(str(found["finished"])) + int(str(found["cancelled"])) == 200
    assert int(str(found["finished"])) > 0
    assert int(str(found["cancelled"])) > 0
