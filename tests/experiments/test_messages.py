"""What is wrong with a setting is said in plain words: the field, its value, and what to use instead."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from pydantic import BaseModel

from calibrate.profile_tables import ProfileSettings
from engines.errors import InputError
from engines.record.masks import _Mask
from engines.record.schema import RunSettings
from engines.storage.validation import Text, checked
from experiments.report.measured import BenchInfo
from experiments.runner.config import CalibrationConfig, Experiment, WorkloadConfig
from experiments.runner.layouts import Changes
from experiments.search.config import Search
from experiments.sweep.axes import Draw, Random
from experiments.sweep.cells import CellSettings
from experiments.sweep.config import Sweep

MODELS: tuple[type[BaseModel], ...] = (
    Experiment, WorkloadConfig, CalibrationConfig, Changes, Sweep, CellSettings, Draw, Random, Search, BenchInfo,
    RunSettings, _Mask, ProfileSettings,
)  # fmt: skip
GOOD = {"architectures": ["pd"], "architecture": "pd", "concurrency": 1, "profile": "p", "count": 2, "base": "pd"}
VALUES: list[Any] = [
    None, True, -1, 0, 5, 1.5, "x", "", "a/b", [], [None], [1], ["a"], [[]], [{}], [1, 2, 3], {}, {"a": 1}, {"a": []},
    {"a": {"b": 1}}, math.inf, math.nan, 2**70,
]  # fmt: skip
PYDANTIC = re.compile(r"input should|should (be|have)|value error|validation|valid |unable to|got ", re.IGNORECASE)


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (Experiment, {"architectures": []}, "architectures = []: use a list of 1 or more"),
        (Experiment, {"architectures": [5]}, "architectures.0 = 5: use text in quotes or a table"),
        (Experiment, {"concurrencies": [0]}, "concurrencies.0 = 0: use a number of at least 1"),
        (Experiment, {"concurrencies": [0, 0]}, "concurrencies.0 = 0: use a number of at least 1"),
        (Experiment, {"seed": -1, "repeats": -1}, "repeats = -1: use a number of at least 1"),
        (Experiment, {"rates": [-2.0]}, "rates.0 = -2.0: use a number above 0"),
        (Experiment, {"replay": "yes"}, "replay = 'yes': use true or false"),
        (Experiment, {"mode": "dead"}, "mode = 'dead': use 'both', 'live' or 'simulated'"),
        (Experiment, {"name": "a/b"}, "name = 'a/b': a name cannot have slashes"),
        (Experiment, {"workload": 3}, "workload = 3: use a table"),
        (Experiment, {"workload": {"cv": math.inf}}, "workload.cv = inf: use a finite number"),
        (Experiment, {"workload": {"rate_steps": 2}}, "workload.rate_steps = 2: use a list in brackets"),
        (Experiment, {"workload": {"color": 1}}, "workload.color = 1: no such setting; use requests, requests_per"),
        (Experiment, {"calibration": {"color": 1}}, "calibration.color = 1: no such setting; use batches, contexts"),
        (Changes, {"verify_first_above": -1}, "verify_first_above = -1: use false or a number of at least 0"),
        (Sweep, {"confidence": 1.0}, "confidence = 1.0: use a number below 1"),
        (Sweep, {"random": {"count": 2, "k": {"pick": 1}}}, "random.k.pick = 1: no such setting; use uniform, log_"),
        (Search, {"slo_share": 1.5}, "slo_share = 1.5: use 1 or less"),
        (Search, {"rates": [1.0]}, "rates = [1.0]: use a list of 2 or more"),
        (Search, {"rates": [1.0, 2.0, 3.0]}, "rates = [1.0, 2.0, 3.0]: use a list of 2 or fewer"),
        (Search, {"space": {"k": {"uniform": ["a", 2]}}}, "space.k.uniform.0 = 'a': use a number"),
        (
            Search,
            {"space": {"k": {"pick": 1}}},
            "space.k.pick = 1: no such setting; use uniform, log_uniform, choice",
        ),
        (CellSettings, {"slots": 2.5}, "slots = 2.5: use a whole number"),
        (CellSettings, {"k": 4}, "k = 4: use text in quotes"),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_the_remedy(
    model: type[BaseModel], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        checked(model, _filled(model) | values)
    assert str(caught.value).startswith(message)


def test_a_text_may_not_be_empty() -> None:
    class Named(BaseModel):
        name: Text

    with pytest.raises(InputError, match=r"^name = '': use text of 1 or more characters$"):
        checked(Named, {"name": ""})


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_no_value_of_any_setting_gets_an_answer_of_pydantic(model: type[BaseModel]) -> None:
    said = []
    for field in (*model.model_fields, "unknown"):
        for value in VALUES:
            try:
                checked(model, _filled(model) | {field: value})
            except InputError as error:
                said.append(error.remedy)
    assert len(said) > 10
    assert [remedy for remedy in said if PYDANTIC.search(remedy)] == []


def _filled(model: type[BaseModel]) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name in model.model_fields}
