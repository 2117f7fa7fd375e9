"""Slots are planned from configurations and free memory, and what cannot fit is refused with the numbers."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from engines.errors import InputError
from engines.live.model.kv_cache import SlotPool
from engines.live.model.pairs import load_configs, load_pair
from engines.live.model.permutation import shape_config
from engines.live.serving.memory import GIB, count_parameters, free_bytes, plan_slots, with_fitting_slots
from engines.pairs.shapes import SHAPES
from engines.policy.architecture import BASELINE, PD, PDV, Step

CUDA, CPU = torch.device("cuda"), torch.device("cpu")  # only named: nothing is put there
LLAMA = "permutation:llama2-7b+tinyllama-1.1b"


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ("llama2-7b", 6_738_415_616),
        ("tinyllama-1.1b", 1_100_048_384),
        ("llama3.1-8b", 8_030_261_248),
        ("llama3.2-1b", 1_235_814_400),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-0.6b", 596_049_920),
    ],
)
def test_shapes_have_the_published_number_of_parameters(shape: str, parameters: int) -> None:
    assert count_parameters(shape_config(SHAPES[shape])) == parameters


def test_a_permutation_pair_s_embeddings_are_untied() -> None:
    target, draft = load_configs("permutation:qwen3-14b+qwen3-0.6b")
    assert [count_parameters(config) for config in (target, draft)] == [14_768_307_200, 751_632_384]


def test_llama_2_on_80_gib_in_numbers() -> None:
    plan = plan_slots(PD, load_configs(LLAMA), CUDA, torch.bfloat16, 1015, free=79 * GIB)
    assert plan.weights == 2 * (6_738_415_616 + 1_100_048_384)
    token = 2 * 2 * (32 * 32 * 128 + 22 * 4 * 64) + 8  # keys and values of both models, and the token itself
    assert plan.slot == (1015 + 4 + 1) * token
    assert plan.reserve == 4 * GIB
    left = 79 * GIB - plan.weights - plan.workspace - plan.reserve
    assert (plan.slots + 1) * plan.slot <= left < (plan.slots + 2) * plan.slot
    assert with_fitting_slots(PD, plan).slots == plan.slots
    assert with_fitting_slots(PD, plan, most=10).slots == 10


def test_a_slot_is_as_large_as_the_pools_make_it() -> None:
    pair = load_pair("permutation:tiny+tiny-draft")
    configs = (pair.target.config, pair.draft.config)
    plan = plan_slots(PDV, configs, CPU, torch.float32, 100, free=GIB)
    pools = [SlotPool(config, 7, 100 + 5, CPU, torch.float32) for config in configs]
    tensors = [tensor for pool in pools for tensor in (*pool.keys, *pool.values)]
    assert 8 * (plan.slot - 105 * 8) == sum(tensor.nbytes for tensor in tensors)
    assert plan.weights == sum(p.nbytes for model in (pair.target, pair.draft) for p in model.parameters())


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    configs = load_configs("permutation:qwen3-14b+qwen3-0.6b")
    pair = plan_slots(PD, configs, CUDA, torch.bfloat16, 1000, free=24 * GIB)
    with pytest.raises(InputError, match=r"pair = '28.91 GiB of weights': does not fit.*24.00 GiB is free"):
        pair.check(1)
    context = plan_slots(PD, configs, CUDA, torch.bfloat16, free=40 * GIB)
    with pytest.raises(InputError, match=r"max_context = 40955: not even one slot of this size fits"):
        with_fitting_slots(PD, context)
    batches = plan_slots(
        PD.with_batch_limits({Step.DRAFT_VERIFY: 900}), configs, CUDA, torch.bfloat16, 1000, free=40 * GIB
    )
    with pytest.raises(InputError, match=r"workspace = '[\d.]+ GiB': does not fit .*use smaller batches"):
        batches.check(1)
    fits = plan_slots(PD, configs, CUDA, torch.bfloat16, 1000, free=40 * GIB)
    fits.check(fits.slots)
    with pytest.raises(InputError, match=rf"slots = {fits.slots + 1}: {fits.slots} fit"):
        fits.check(fits.slots + 1)


def test_what_no_engine_could_serve_is_refused_by_its_plan() -> None:
    configs = load_configs(LLAMA)
    with pytest.raises(InputError, match="max_context = 2044: use 2 to 2043: the models have 2048 positions"):
        plan_slots(PD, configs, CUDA, torch.bfloat16, 2044, free=GIB)
    lanes = (replace(PD.lanes[0], device=1), PD.lanes[1])
    with pytest.raises(InputError, match=r"lanes\.device"):
        plan_slots(PD.replace(lanes=lanes), configs, CUDA, torch.bfloat16, free=GIB)


def test_models_that_are_no_decoders_are_refused_and_others_planned() -> None:
    no_decoder = AutoConfig.for_model("vit", max_position_embeddings=64, vocab_size=10)
    for config, message in (
        (AutoConfig.for_model("t5"), "max_position_embeddings"),
        (no_decoder, "does not describe a decoder"),
    ):
        with pytest.raises(InputError, match=f"pair = '{config.model_type}': .*{message}"):
            plan_slots(PD, (config, config), CPU, torch.float32, free=GIB)
    silent = AutoConfig.for_model("gpt2", n_layer=2)  # on its intermediate size
    assert plan_slots(PD, (silent, silent), CPU, torch.float32, 64, free=4 * GIB).slots > 0


@pytest.mark.parametrize("positions", [-5, 0, 2.5, True])
def test_positions_that_cannot_be_are_refused_by_name(positions: object) -> None:
    config = shape_config(SHAPES["tiny"])
    wrong = copy(config)
    wrong.__dict__["max_position_embeddings"] = positions  # as a file may say; transformers checks what is assigned
    remedy = f"put the context that the {config.model_type} model was trained for in its config"
    with pytest.raises(InputError, match=f"max_position_embeddings = {positions}: .*{remedy}"):
        plan_slots(PD, (config, wrong), CPU, torch.float32, free=GIB)


def test_more_at_once_needs_more_workspace() -> None:
    configs = load_configs(LLAMA)

    def workspace(architecture: object) -> int:
        return plan_slots(architecture, configs, CUDA, torch.bfloat16, 1000, free=GIB).workspace  # type: ignore[arg-type]

    packed = PD.with_batch_limits({Step.PREFILL: 8})
    large = PD.with_batch_limits({Step.PREFILL: 8, Step.DRAFT_VERIFY: 64})
    assert workspace(PD) < workspace(packed) < workspace(large)
    more = BASELINE.replace(lanes=(BASELINE.lanes[0].__class__("worker", BASELINE.lanes[0].steps, workers=8,
                                                               run_to_completion=True),))  # fmt: skip
    assert workspace(more) == 2 * workspace(BASELINE)


def test_loaded_weights_reserve_and_a_measured_free_memory() -> None:
    configs = load_configs("embedded")
    here = plan_slots(PD, configs, CPU, torch.float32, 200)
    assert here.free == pytest.approx(free_bytes(CPU), rel=0.5)
    assert here.reserve == min(int(0.1 * here.free), 4 * GIB)
    loaded = plan_slots(PD, configs, CPU, torch.float32, 200, reserve=0, free=GIB, loaded=True)
    assert (loaded.weights, loaded.reserve) == (0, 0)
    assert loaded.slots > plan_slots(PD, configs, CPU, torch.float32, 200, free=GIB).slots


def test_configurations_of_a_missing_folder_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="no subfolder draft"):
        load_configs(tmp_path)
    with pytest.raises(InputError, match=r"no config.json"):
        load_configs(tmp_path / "target", tmp_path / "draft")
