"""Live engines over permutation pairs: every token and every acceptance equals the closed form."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engines.errors import InputError
from engines.live.model.pairs import Pair, load_pair
from engines.live.model.permutation import build_models
from engines.live.serving.engine import LiveEngine
from engines.live.serving.prompts import prompts_for
from engines.live.serving.serve import serve
from engines.pairs.permutation import PermutationSpec, expected_output, expected_tape, make_cycle, parse_pair
from engines.pairs.prompts import permutation_prompts
from engines.pairs.shapes import SHAPES, ModelShape
from engines.policy.architecture import ARCHITECTURES
from engines.policy.request import Request
from engines.workload.workload import FixedLength, Workload, make_workload
from tests.engines.live.test_lossless import collect

NAME = "permutation:tiny+tiny-draft:alpha=0.9,0.6"
SPEC = parse_pair(NAME)


@pytest.fixture(scope="module")
def tiny() -> Pair:
    return load_pair(NAME)


def requests(count: int) -> tuple[Request, ...]:
    """Prompts of any tokens, special ones too."""
    rng = random.Random(5)
    prompts = [tuple(rng.randrange(512) for _ in range(rng.randint(1, 20))) for _ in range(count)]
    return tuple(Request(i, len(p), rng.randint(1, 50), prompt=p) for i, p in enumerate(prompts))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_token_and_tape_equals_the_closed_form(name: str, tiny: Pair) -> None:
    asked = requests(12)
    with LiveEngine(ARCHITECTURES[name], tiny) as engine:
        handles, run = collect(engine, Workload(asked, concurrency=6))
    for request in asked:
        assert handles[request.id].tokens == expected_output(SPEC, request.prompt, request.max_tokens).tolist()
        tape = expected_tape(SPEC, request.prompt, request.max_tokens)
        assert np.array_equal(run.tapes[request.id], tape if ARCHITECTURES[name].drafts else np.full_like(tape, -1))


def test_prompts_start_where_the_asked_acceptance_is(tiny: Pair) -> None:
    """The same prompts live and simulated, each alpha in its own region, and the rest of the prompt unchanged."""
    asked = make_workload(20, FixedLength(8), FixedLength(40), concurrency=5, seed=3)
    plain = prompts_for(tiny, asked, 3)
    for alpha in SPEC.alphas:
        chosen = dataclasses.replace(asked, info={**asked.info, "alpha": alpha})
        prompted = prompts_for(tiny, chosen, 3)
        assert prompted == permutation_prompts(chosen, SPEC, 3)
        assert len({request.prompt[-1] for request in prompted.requests if request.prompt}) > 10
        tapes = [expected_tape(SPEC, request.prompt or (), 40)[1:] for request in prompted.requests]
        assert np.concatenate(tapes).mean() == pytest.approx(alpha, abs=0.08)
        for ours, other in zip(prompted.requests, plain.requests, strict=True):
            assert (ours.prompt or ())[:-1] == (other.prompt or ())[:-1]
    with pytest.raises(InputError, match=r"workload\.alpha = 0\.7: the pair .* has 0\.9, 0\.6"):
        prompts_for(tiny, dataclasses.replace(asked, info={**asked.info, "alpha": 0.7}), 3)
    longer = make_workload(1, FixedLength(8), FixedLength(400), concurrency=1)
    with pytest.raises(InputError, match="output_tokens = 400: the region of alpha"):
        prompts_for(tiny, dataclasses.replace(longer, info={**longer.info, "alpha": 0.9}), 3)


def test_measured_acceptance_is_the_dialled_one(tiny: Pair) -> None:
    """Two requests, each walking one whole region: the share of right drafts is that region's alpha."""
    order = make_cycle(SPEC).order
    half = -(-len(order) // 2)
    asked = tuple(Request(i, 1, half + 1, prompt=(int(order[i * half]),)) for i in range(2))
    with LiveEngine(ARCHITECTURES["pd"], tiny) as engine:
        run = serve(engine, Workload(asked, concurrency=2))
    rates = [run.tapes[i][1:].mean() for i in range(2)]
    assert rates == pytest.approx([0.9, 0.6], abs=0.01)
    emitted = run.steps[run.steps["draft_length"] > 0].groupby("request")["emitted"].mean()
    assert emitted.tolist() == pytest.approx([sum(a**i for i in range(5)) for a in (0.9, 0.6)], rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.05, 0.25])
def test_the_margin_is_wide_even_where_it_is_smallest(
    dtype: torch.dtype, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deep and narrow is the hardest: directions are least orthogonal and layers have most to say. The winner's
    logit is about sqrt(hidden) / sqrt(1 + 0.5 layers scale^2), all others are standard normal."""
    settings = {
        "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    monkeypatch.setitem(SHAPES, "narrow", ModelShape("narrow", "llama", settings, range(3)))
    spec = PermutationSpec("narrow", "narrow", (0.5,), scale)
    assert spec.closed_form
    assert not PermutationSpec("narrow", "narrow", (0.5,), 0.3).closed_form  # 0.25 is near the limit
    cycle = make_cycle(spec)
    tokens = torch.from_numpy(cycle.order[:200].reshape(4, 50))
    models = build_models(spec, torch.device("cpu"), dtype)
    for model, said in zip(models, (cycle.target_next, cycle.draft_next), strict=True):
        expected = torch.from_numpy(said[:200].reshape(4, 50, 1).copy())
        with torch.inference_mode():
            logits = model(input_ids=tokens).logits.float()
        winner = logits.gather(-1, expected)
        others = logits.scatter(-1, expected, -torch.inf)
        assert winner.mean() == pytest.approx(16 / (1 + 0.5 * 32 * scale**2) ** 0.5, rel=0.1)
        assert winner.min() > 1.2 * others.max()


def test_layers_do_say_something(tiny: Pair) -> None:
    """Otherwise a pair would cost what a real one does and exercise less."""
    model = build_models(SPEC, torch.device("cpu"), torch.float32)[0]
    with torch.inference_mode():
        states = model(input_ids=torch.arange(4, 60)[None], output_hidden_states=True).hidden_states
        added = (model.model.layers[-1](states[-2], position_embeddings=model.model.rotary_emb(states[-2],
                 torch.arange(56)[None])) - states[0]).norm() / states[0].norm()  # fmt: skip
    assert 0.03 < float(added) < 0.3


def test_a_saved_pair_is_an_ordinary_hugging_face_pair(tiny: Pair, tmp_path: Path) -> None:
    for role in ("target", "draft"):
        getattr(tiny, role).save_pretrained(tmp_path / role)
    loaded = load_pair(tmp_path)
    assert loaded.end_tokens == tiny.end_tokens
    assert not loaded.target.config.tie_word_embeddings
    request = requests(1)[0]
    with LiveEngine(ARCHITECTURES["pdv"], loaded) as engine:
        tokens = engine.submit(request).result(30)
    expected = expected_output(SPEC, request.prompt, request.max_tokens).tolist()
    assert tokens == expected
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    out = plain.generate(torch.tensor([request.prompt]), max_new_tokens=request.max_tokens, do_sample=False)
    assert out[0, request.prompt_tokens :].tolist() == expected
