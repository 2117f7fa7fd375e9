"""Families of models are served exactly or refused when they are loaded: some of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from experiments.checks.families import EXACT, REFUSED, VARIANTS, Variant, check

pytestmark = pytest.mark.live
SERVED = ["gpt2", "opt", "qwen3_moe"]
UNSERVED = {
    "bert": "logits differ",  # looks ahead
    "deepseek_v3": "",  # queries and values of different sizes
    "diffllama": "attends twice",
    "hrm_text": "",
    "mamba": "",  # no attention
}


@pytest.mark.parametrize("family", SERVED)
def test_these_families_are_served_exactly(family: str, tmp_path: Path) -> None:
    row = check(Variant(family), tmp_path)
    assert (row.outcome, row.said) == (EXACT, "")
    assert row.tokens > 60


@pytest.mark.parametrize("family", UNSERVED)
def test_these_families_are_refused_when_they_are_loaded(family: str, tmp_path: Path) -> None:
    row = check(Variant(family), tmp_path)
    assert row.outcome == REFUSED
    assert UNSERVED[family] in row.said


@pytest.mark.parametrize(
    ("family", "name", "outcome", "said"),
    [
        ("llama", "longrope", EXACT, ""),
        ("phi3", "longrope", EXACT, ""),
        ("gemma2", "all layers full, softcap", REFUSED, "softcap"),
        ("gemma2", "all layers full, no softcap", EXACT, ""),
        ("gpt_oss", "all layers full", REFUSED, "s_aux"),
        ("granite_swa", "all layers full", REFUSED, ""),
    ],
)
def test_settings_decide_whether_a_family_is_served(
    family: str, name: str, outcome: str, said: str, tmp_path: Path
) -> None:
    (variant,) = (each for each in VARIANTS if (each.family, each.name) == (family, name))
    row = check(variant, tmp_path)
    assert row.outcome == outcome, row
    assert said in row.said
