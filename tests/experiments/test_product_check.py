"""The check of products compares what it says it does, in launches that the kernels can be given.

Without a GPU the kernels run in Triton's interpreter, see tests/engines/live/test_kernels.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed, so its kernels are not checked")

from engines.pairs.shapes import SHAPES, ModelShape
from experiments.checks import products as product_check
from experiments.checks.kernels import LIMIT
from experiments.checks.products import DEVICE, PRODUCTS, Bench, launched, launches


def random(*shape: int) -> Tensor:
    return torch.randn(shape).to(DEVICE, torch.float16)  # the interpreter multiplies no bfloat16


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_check, "random", random)
    monkeypatch.setattr(product_check, "processors_of", lambda device: 4)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("shape", [SHAPES["tiny"], SHAPES["tiny-draft"]], ids=["plain", "with head norms"])
def test_every_launch_that_is_timed_is_one_that_computes_the_product(shape: ModelShape, product: str) -> None:
    bench = Bench(shape, product, tokens=3, layers=1)
    assert bench.error() < LIMIT
    _, *others = launches(bench)
    for launch in others[:3]:
        with launched(launch):
            assert bench.error() < LIMIT, launch


def test_a_wrong_product_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(SHAPES["tiny"], "gate", tokens=3, layers=1)
    right = bench.do

    def wrong(begun: object, weight: Tensor) -> list[Tensor]:
        made = right(begun, weight)  # type: ignore[arg-type]
        return [made[0] * (1.02 if isinstance(begun, product_check.SkinnyPass) else 1)]

    monkeypatch.setattr(bench, "do", wrong)
    assert bench.error() > LIMIT
