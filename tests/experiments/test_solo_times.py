"""What a live span would have taken alone, where the profile can say it."""

from __future__ import annotations

import pytest

from engines.record.metrics import PARTS, decompose
from experiments.compare.solo_times import with_solo_times
from sim.costs import CostModel
from tests.experiments import synthetic


def test_a_draft_length_that_was_never_measured_leaves_the_solo_time_unknown() -> None:
    live = synthetic.live("pdv", slower=1.0)
    drafts = live.spans["segment"] == "draft"
    first = live.spans.index[drafts][:5]
    live.spans.loc[first, "draft_length"] = 16
    filled = with_solo_times(live, CostModel(synthetic.profile(), extrapolate=True))
    assert filled.spans.loc[first, "solo_s"].isna().all()
    assert filled.spans["solo_s"].drop(first).notna().all()
    parts = decompose(filled)
    assert parts[PARTS].sum(axis=1).to_numpy() == pytest.approx(parts["latency_s"].to_numpy())
