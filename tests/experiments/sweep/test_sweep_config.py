"""Configurations of sweeps: what their cells are, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from engines.errors import InputError
from engines.policy.architecture import Step
from experiments.runner.predict import AcceptanceChoice
from experiments.sweep.config import CONFIGS, Sweep

GOOD: dict[str, Any] = {"profile": "p", "architectures": ["pd", "pdv"], "concurrencies": [1, 4]}
CLOSED_FORM = AcceptanceChoice("closed form")


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIGS.glob("*.toml"))])
def test_the_shipped_configurations_are_good(name: str) -> None:
    sweep = Sweep.load(name)
    assert Path(sweep.profile).is_dir()
    assert sweep.name == name
    assert Sweep.from_dict(tomllib.loads(tomli_w.dumps(sweep.resolved()))) == sweep
    assert len({cell.digest for cell in sweep.cells()}) == len(sweep.cells())


def test_every_setting_reaches_the_cell_and_its_columns() -> None:
    grid = {
        "k": [2], "prefill_limit": [3], "decode_limit": [7], "slots": [9], "permits": [1], "acceptance": [0.5],
        "prompt_tokens": [100], "output_tokens": ["16-32"], "requests": [40], "slo_ttft_s": [0.5],
        "slo_tpot_s": [0.1], "replicas": [2], "router": ["least-loaded"],
    }  # fmt: skip
    pd, pdv = Sweep.from_dict({**GOOD, "concurrencies": [4], "grid": grid}).cells()
    assert pd.architecture.lanes[1].steps == {Step.DRAFT_VERIFY: 7}
    assert [lane.steps for lane in pdv.architecture.lanes] == [{Step.DRAFT: 7}, {Step.VERIFY: 7}, {Step.PREFILL: 3}]
    assert (pdv.architecture.slots, pdv.architecture.permits, pdv.architecture.draft_length.maximum) == (9, 1, 2)
    config = pdv.settings.workload()
    assert (config.prompt_tokens, config.output_tokens, config.requests) == ("100", "16-32", 40)
    assert pdv.columns(CLOSED_FORM) == {
        "architecture": "pdv", "k": "2", "batch_limit": "draft=7,verify=7,prefill=3", "prefill_limit": 3,
        "decode_limit": 7, "workers": 1, "slots": 9, "permits": 1, "hybrid": 1, "acceptance": "0.5",
        "concurrency": 4, "rate": None, "requests": 40, "requests_per_client": 1, "prompt_tokens": "100",
        "output_tokens": "16-32", "process": None, "cv": None, "rate_steps": None, "temperature": 0.0, "trace": None,
        "slo_ttft_s": 0.5, "slo_tpot_s": 0.1, "replicas": 2, "router": "least-loaded",
    }  # fmt: skip


def test_a_rate_may_change_within_a_cell() -> None:
    zipped = {"rate": [4.0, 8.0], "rate_steps": [[1, 3], [2.0, 0.5]]}
    cells = Sweep.from_dict({"profile": "p", "architectures": ["pd"], "zip": [zipped]}).cells()
    assert [cell.columns(CLOSED_FORM)["rate_steps"] for cell in cells] == ["1,3", "2,0.5"]
    built = cells[1].settings.workload().build(cells[1].settings.load, seed=0)
    assert (built.info["rate"], built.info["rate_steps"]) == (8.0, [2.0, 0.5])


def test_columns_name_what_was_chosen_by_default() -> None:
    cell = Sweep.from_dict({**GOOD, "workload": {"requests_per_client": 20}}).cells()[1]
    columns = cell.columns(CLOSED_FORM)
    assert (columns["acceptance"], columns["k"], columns["requests"], columns["slots"]) == (
        "closed form",
        "4",
        80,
        64,
    )


def test_axes_may_be_loads_of_any_kind_and_tables(tmp_path: Path) -> None:
    table = {"base": "pdv", "name": "mine", "permits": 1}
    zipped = {"architecture": ["pd", table], "batch_limit": ["draft+verify=9", "draft=9,verify=3"]}
    values = {"profile": "p", "zip": [zipped], "grid": {"rate": [1, 2.5]}, "workload": {"process": "fixed"}}
    cells = Sweep.from_dict(values).cells()
    assert [str(cell) for cell in cells[2:]] == [
        "rate 2.5, architecture pd, batch_limit draft+verify=9",
        "rate 2.5, architecture mine, batch_limit draft=9,verify=3",
    ]
    (tmp_path / "trace.csv").write_text("timestamp,prompt_tokens,output_tokens\n0,10,5\n1,20,6\n")
    (tmp_path / "sweep.toml").write_text('profile = "p"\narchitectures = ["pd"]\n[grid]\ntrace = ["trace.csv"]\n')
    sweep = Sweep.load(tmp_path / "sweep.toml")
    assert sweep.profile == str(tmp_path / "p")
    assert sweep.cells()[0].requests == 2
    before = sweep.cells()[0].digest
    (tmp_path / "other.csv").write_text("timestamp,prompt_tokens,output_tokens\n0,10,5\n1,20,7\n")
    (tmp_path / "sweep.toml").write_text('profile = "p"\narchitectures = ["pd"]\n[grid]\ntrace = ["other.csv"]\n')
    assert Sweep.load(tmp_path / "sweep.toml").cells()[0].digest != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"replicas": [0]}}, "replicas = 0: "),
        ({"grid": {"replicas": [1001]}}, "replicas = 1001: use 1000 or fewer"),
        ({"grid": {"router": ["random"]}}, "router = 'random': use round-robin, least-loaded"),
        ({"grid": {"color": [1]}}, "axes = 'color': no such axis; use architecture, k, batch_limit"),
        ({"grid": {"concurrency": [1]}}, "grid.concurrency = [1]: the sweep lists its values already"),
        ({"grid": {"k": []}}, "grid.k = []: list at least one value"),
        ({"grid": {"slots": ["many"]}}, "cell slots = 'many': use a whole number"),
        ({"grid": {"k": [True]}}, "cell k = True: use text"),
        ({"zip": [{"k": [1, 2], "slots": [3]}]}, "zip.0.k, slots = [2, 1]: axes of a zip go together"),
        ({"rates": [1.0]}, "cell loads = 'concurrency, rate': give each cell exactly one"),
        ({"concurrencies": []}, "cell loads = None: give each cell exactly one"),
        ({"architectures": []}, "cell architecture = None: it is missing"),
        ({"acceptance": "2"}, "acceptance = '2': use probabilities from 0 to 1"),
        ({"workload": {"cv": 2.0}}, "workload.cv = 2.0: a closed loop has no arrival process"),
        ({"grid": {"batch_limit": ["draft=3"]}}, "batch_limit = 'draft': pd has no such step"),
        ({"grid": {"k": ["4-2"]}}, "draft_length = '4-2': use a whole number"),
        ({"architectures": ["pd", {"base": "pd", "slots": 3}]}, "architectures = 'pd': two of them have this name"),
        ({"architectures": [{"base": "pd", "rates": [1.0]}]}, "the loads of a sweep are axes"),
        ({"grid": {"trace": ["missing.csv"]}, "concurrencies": []}, "cannot read the file"),
        ({"seed": 2**63 - 1}, "seed + repeats = 9223372036854775810: use 9223372036854775807 or fewer"),
        ({"confidence": 1.0}, "confidence = 1.0"),
        ({"mode": "live"}, "mode = 'live': no such setting; use name, pair, profile, architectures"),
        ({"profile": None}, "profile = None"),
    ],
)
def test_what_cannot_be_swept_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Sweep.from_dict({**GOOD, **changes})
    assert message in str(caught.value)
