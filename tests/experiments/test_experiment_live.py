"""The shipped configurations, small and on the CPU, with real engines: they run, and every output is right."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w

from engines.pairs.permutation import expected_output, parse_pair
from engines.policy.request import Request
from engines.record.run import Run
from experiments.cli import main
from experiments.runner.config import CONFIGS

pytest.importorskip("torch")
pytestmark = pytest.mark.live
PAIR = "permutation:tiny+tiny-draft:alpha=0.8"
PACKED = [1, 2]  # no more than two clients come


def small(name: str, **change: Any) -> dict[str, Any]:
    """The configuration with its architectures and draft lengths, but a tiny pair, two clients and short requests."""
    values = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    values = {key: value for key, value in values.items() if key not in ("profile", "mode", "max_context")}
    for architecture in values["architectures"]:
        if isinstance(architecture, dict) and "concurrencies" in architecture:
            architecture["concurrencies"] = [2]
    return {
        **values, "pair": PAIR, "device": "cpu", "concurrencies": [2], "repeats": 1,
        "workload": {"requests": 3, "prompt_tokens": "8", "output_tokens": "8"},
        "calibration": {"batches": [1, 2], "contexts": [8, 16], "prompt_tokens": [8, 16], "packed": PACKED,
                        "budget_s": 0.5},
        **change,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["layouts", "ablations", "adaptive-high"])
def test_a_shipped_configuration_serves_calibrates_and_simulates(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.figures.draw.draw_all", lambda *arguments: [])  # takes longer than all the rest
    (tmp_path / "config.toml").write_text(tomli_w.dumps(small(name, replay=False)))
    assert main(["experiment", f"{tmp_path}/config.toml", "--out", f"{tmp_path}/out"]) == 0
    table = pd.read_csv(tmp_path / "out" / "cells.csv")
    live = table[table["kind"] == "live"]
    assert len(table) == 3 * len(live)  # with the simulation and the blind prediction
    assert (table["status"] == "finished").all()
    assert (live["checked"] == 3).all()
    assert (live["equal"] == 3).all()
    assert (tmp_path / "out" / "comparison.txt").stat().st_size > 0
    slots = {run.info["architecture"]["slots"] for run in map(Run.load, (tmp_path / "out" / "live").iterdir())}
    assert slots <= {1, 2, 64}  # as many as the load can use, or as named


def test_priorities_are_simulated_from_a_profile_that_was_measured_on_a_gpu(tmp_path: Path) -> None:
    values = tomllib.loads((CONFIGS / "priorities.toml").read_text())
    profile = (CONFIGS / values["profile"]).resolve()
    values |= {"profile": str(profile), "concurrencies": [10], "repeats": 1}
    (tmp_path / "config.toml").write_text(tomli_w.dumps(values))
    assert main(["experiment", f"{tmp_path}/config.toml", "--jobs", "1", "--out", f"{tmp_path}/out"]) == 0
    table = pd.read_csv(tmp_path / "out" / "cells.csv").set_index("architecture")["throughput_tokens_per_s"]
    assert len(table) == 6
    assert table["PDV, two permits"] != table["PDV, two permits, reversed"]


def test_a_wrong_token_is_noticed_and_where_it_is() -> None:
    from engines.live.serving.engine import Handle
    from engines.policy.request_state import RequestState
    from experiments.runner.live import exactness

    handles = []
    for request_id, wrong in ((0, None), (1, 5)):
        request = Request(request_id, 4, 8, prompt=(1, 2, 3, 4))
        tokens = expected_output(parse_pair(PAIR), request.prompt or (), 8).tolist()
        if wrong is not None:
            tokens[wrong] += 1
        handles.append(Handle(request, tokens, state=RequestState(request, 8, 0.0, 0.0, 0, (0.0, 0.0))))
    assert exactness(PAIR, handles) == {"checked": 2, "equal": 1, "first": "request 1, output token 5"}
    assert exactness("embedded", handles) is None
