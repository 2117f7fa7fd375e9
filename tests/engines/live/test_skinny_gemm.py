"""A pass of few tokens computes what a pass of any number of tokens does.

Without a GPU the kernels run in Triton's interpreter, see test_kernels.py; on fewer numbers of tokens, as it is slow.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama import LlamaForCausalLM

from engines.live.kernels.passes import Product, WidePass
from engines.live.model.attention import PackedBatch
from engines.live.model.fused import FusedDecoder
from engines.live.model.kv_cache import SlotPool

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="triton is not installed, so its kernels are not checked")

from engines.live.kernels import skinny_gemm  # noqa: E402
from engines.live.kernels.skinny_gemm import Launch, SkinnyPass, launch_for  # noqa: E402

DTYPE = torch.float16  # the interpreter multiplies no bfloat16
WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM = 128, 192, 4, 2, 32


def random(*shape: int) -> Tensor:
    return torch.randn(shape).to(DEVICE, DTYPE)


def product(outputs: int, inputs: int, biased: bool = False) -> Product:
    return Product((random(outputs, inputs) * inputs**-0.5), random(outputs) if biased else None)


def close(actual: Tensor, expected: Tensor) -> bool:
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    return bool(error < 2e-3)


@pytest.fixture(params=[1, 2, 3], ids=lambda splits: f"{splits} splits")
def splits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    columns = {1: 24, 2: 32, 3: 64}[request.param]  # 24: not all of a tile; 64: more than a head of HEAD_DIM has

    def launch(outputs: int, inputs: int, rows: int, processors: int, power_of_two: bool = False) -> Launch:
        return Launch(16 if power_of_two and columns == 24 else columns, request.param, 64, 4, 3, 64)

    monkeypatch.setattr(skinny_gemm, "launch_for", launch)
    return int(request.param)


def both(tokens: int) -> tuple[SkinnyPass, WidePass]:
    torch.manual_seed(tokens)
    start = (torch.randint(0, 50, (tokens,), device=DEVICE), random(50, WIDTH), random(WIDTH), 1e-5)
    return SkinnyPass(*start), WidePass(*start)


@pytest.mark.parametrize("tokens", [1, 5, 16, 40, 64] if DEVICE == "cuda" else [5, 40])
def test_what_is_added_shows_in_the_next_normed_product(tokens: int, splits: int) -> None:
    passes = both(tokens)
    head = product(70, WIDTH, biased=True)  # no whole number of blocks
    assert close(*(each.project(head) for each in passes))
    for inputs in (192, 128):
        x, added, norm = random(tokens, inputs), product(WIDTH, inputs, biased=inputs == 128), random(WIDTH)
        for each in passes:
            each.add(x, added, norm)
        assert close(*(each.project(head) for each in passes))
        assert close(*(each.project(head) for each in passes))  # a product changes nothing that the next one reads


def test_nothing_added_is_lost_where_no_product_comes_between(splits: int) -> None:
    passes = both(5)
    x, added, norm, head = random(5, 128), product(WIDTH, 128), random(WIDTH), product(100, WIDTH)
    for each in passes:
        each.add(x, added, norm)
        each.add(x, added, norm)
    assert close(*(each.project(head) for each in passes))


@pytest.mark.parametrize("tokens", [1, 16, 17])
def test_gate(tokens: int, splits: int) -> None:
    gate_up = product(2 * 72, WIDTH)
    assert close(*(each.gate(gate_up) for each in both(tokens)))


@pytest.mark.parametrize("normed", [False, True], ids=["", "heads normed"])
@pytest.mark.parametrize("tokens", [1, 16, 40])
def test_queries_keys_and_values(tokens: int, normed: bool, splits: int) -> None:
    passes = both(tokens)
    qkv = product((HEADS + 2 * KV_HEADS) * HEAD_DIM, WIDTH, biased=True)
    norms = random(HEADS + KV_HEADS, HEAD_DIM) if normed else None
    angles = torch.rand(tokens, HEAD_DIM // 2, device=DEVICE) * 400
    rotations = torch.cat([angles.cos(), angles.sin()], -1).to(DTYPE)
    rows = torch.randperm(3 * 64, device=DEVICE)[:tokens]
    found = []
    for each in passes:
        pools = [torch.full((3, 64, KV_HEADS, HEAD_DIM), 9.0, dtype=DTYPE, device=DEVICE) for _ in range(2)]
        found.append([each.queries(qkv, norms, rotations, rows, *pools), *pools])
    assert all(close(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("kept", [1, 20])
def test_a_pass_goes_on_with_some_of_its_tokens(kept: int, splits: int) -> None:
    passes = both(33)
    places = torch.randperm(33, device=DEVICE)[:kept]
    x, added, norm, head = random(kept, INNER), product(WIDTH, INNER), random(WIDTH), product(48, WIDTH)
    for each in passes:
        each.keep(places)
        each.add(x, added, norm)
    assert close(*(each.project(head) for each in passes))


SMALL = {
    "vocab_size": 96, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_decoder_says_the_same_by_either_pass(kind: str) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)) if kind == "llama" else Qwen3ForCausalLM(Qwen3Config(**SMALL))
    decoder = FusedDecoder(model.to(DEVICE, DTYPE))
    said = []
    for narrow in (False, True):
        decoder._narrow = narrow
        pool = SlotPool(model.config, 4, 24, torch.device(DEVICE), DTYPE)
        slots = torch.tensor([2, 0, 3], device=DEVICE)
        tokens = torch.arange(3 * 8, device=DEVICE) % 96
        with torch.inference_mode():
            decoder(tokens, PackedBatch(pool, slots, torch.zeros_like(slots), 8), torch.tensor([7], device=DEVICE))
            following = decoder(tokens[:6], PackedBatch(pool, slots, torch.full_like(slots, 8), 2), None)
        said.append([following, *pool.keys, *pool.values])
    assert all(close(*pair) for pair in zip(*said, strict=True))


def test_more_tokens_than_a_narrow_pass_takes_go_the_wide_way() -> None:
    decoder = FusedDecoder(LlamaForCausalLM(LlamaConfig(**SMALL)).to(DEVICE, DTYPE))
    decoder._narrow = True
    for tokens, kind in ((1, SkinnyPass), (64, SkinnyPass), (65, WidePass)):
        assert type(decoder._start(torch.zeros(tokens, dtype=torch.int64, device=DEVICE))) is kind


SHAPES = [
    (22016, 4096), (12288, 4096), (4096, 11008), (4096, 4096), (32000, 4096), (128256, 4096), (34816, 5120),
    (2560, 2048), (2048, 5632), (32000, 2048), (1024, 3072), (151936, 1024), (96, 128),
]  # fmt: skip


@pytest.mark.parametrize("processors", [1, 108, 132])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_every_launch_fits_its_product_and_a_processor(
    outputs: int, inputs: int, rows: int, power_of_two: bool, processors: int
) -> None:
    launch = launch_for(outputs, inputs, rows, processors, power_of_two)
    assert inputs % launch.step == 0
    assert launch.ahead <= inputs
    each = -(-(inputs // launch.step) // launch.splits) * launch.step  # as the kernel shares them out
    assert each * launch.splits >= inputs
    assert launch.splits == 1 or outputs / launch.columns <= skinny_gemm.COUNTERS
    assert launch.columns % 2 == 0
    assert 16 <= launch.columns <= 256
    assert launch.columns == launch.tile or not power_of_two
    assert 2 * (launch.tile + rows) * launch.step * launch.stages < 227 * 1024  # shared memory of a processor


@pytest.mark.parametrize(("outputs", "inputs"), [shape for shape in SHAPES if shape[0] >= 4096])
@pytest.mark.parametrize("rows", [16, 64])
def test_the_programs_of_a_launch_end_together(outputs: int, inputs: int, rows: int) -> None:
    launch = launch_for(outputs, inputs, rows, 132)
    program_bytes = 2 * (launch.tile + rows) * launch.step * launch.stages + 1024
    programs = -(-outputs // launch.columns) * launch.splits
    turns = programs / (132 * (227 * 1024 // program_bytes))
    assert turns / -(-turns // 1) > 0.88
    assert turns <= -(-outputs // (132 * 256)) or launch.splits > 1
    assert launch.tile < 256 or launch.columns > 192


@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("outputs", [576, 1024, 2048, 2560])
def test_every_program_of_a_split_product_has_inputs(outputs: int, rows: int) -> None:
    for inputs in (576, 1536, 2048, 3072, 5632):
        launch = launch_for(outputs, inputs, rows, 132)
        steps = inputs // launch.step
        assert (launch.splits - 1) * -(-steps // launch.splits) < steps
        assert launch.splits * -(-outputs // launch.columns) >= 64 or inputs < 2048
