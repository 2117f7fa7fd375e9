"""Check which model families are served exactly and which are refused, with tiny random models.

For every decoder family that transformers knows, and for some variants, a tiny pair with random weights is built,
saved and loaded like any other pair. If it is not refused, it serves a few requests of different lengths in two
architectures. Every output is compared, token by token, with the target's own `generate` for one request at a time.
"""

from __future__ import annotations

import platform
import random
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from engines.errors import InputError
from engines.live.device.host import lane_settings
from engines.live.model.pairs import Pair, load_pair
from engines.live.serving.engine import Handle, LiveEngine
from engines.live.serving.serve import serve
from engines.policy.architecture import BASELINE, PDV
from engines.policy.draft_length import FixedDraftLength
from engines.policy.request import Request
from engines.workload.workload import Workload
from experiments.checks.tiny_decoders import families, save_pair, tiny_config, tiny_model

EXACT, REFUSED, NOT_MADE, WRONG, FAILED = "exact", "refused at load", "not made", "WRONG", "FAILED"
ARCHITECTURES = tuple(layout.replace(slots=4, draft_length=FixedDraftLength(3)) for layout in (BASELINE, PDV))
REQUESTS, LONGEST_PROMPT, LONGEST_OUTPUT, CLIENTS = 8, 30, 30, 4
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 8, "long_factor": [3.0] * 8,
    "original_max_position_embeddings": 40, "factor": 3.0,
}  # fmt: skip
FULL = ["full_attention"] * 2


@dataclass(frozen=True)
class Variant:
    """A family with changed settings. name: describes the change; empty for the family's defaults."""

    family: str
    name: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("bert", "as a decoder", {"is_decoder": True}),
    Variant(
        "gemma2", "all layers full, softcap",
        {"layer_types": FULL, "sliding_window": 4096, "attn_logit_softcapping": 0.5},
    ),
    Variant(
        "gemma2", "all layers full, no softcap",
        {"layer_types": FULL, "sliding_window": 4096, "attn_logit_softcapping": None},
    ),
    Variant("gemma3_text", "all layers full", {"layer_types": FULL}),
    Variant("gpt_oss", "all layers full", {"layer_types": FULL}),
    Variant("granite_swa", "all layers full", {"layer_types": FULL}),
    Variant("granitemoe_swa", "all layers full", {"layer_types": FULL}),
    Variant("llama", "longrope", {"rope_parameters": LONGROPE}),
    Variant("llama", "dynamic", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}}),
    Variant("llama", "linear", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
    Variant("lfm2", "conv and attention", {"layer_types": ["conv", "full_attention"]}),
    Variant("mistral", "window of 16", {"sliding_window": 16}),
    Variant("mistral", "no window", {"sliding_window": None}),
    Variant("nemotron", "heads of 16", {"head_dim": 16, "num_key_value_heads": 2}),
    Variant("phi3", "longrope", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 40}),
    Variant("phi3", "no window", {"sliding_window": None}),
    Variant("qwen2", "window of 16", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The outcome for a variant.

    tokens: number compared with generate. context: tokens that a request may have, if the pair was served. said: why
    it was refused or not built, or what went wrong.
    """

    family: str
    variant: str
    outcome: str
    tokens: int = 0
    context: int = 0
    said: str = ""


def check(variant: Variant, folder: Path) -> Row:
    """Build a variant in an empty folder, load it, serve it and compare."""
    what = (variant.family, variant.name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_pair(tiny_model(tiny_config(variant.family, variant.changes)), folder)
    except Exception as error:  # a family that cannot be shrunk may raise anything
        said = error.remedy if isinstance(error, InputError) else str(error)
        return Row(*what, NOT_MADE, said=_line(said or type(error).__name__))
    try:
        pair = load_pair(folder)
    except InputError as error:
        return Row(*what, REFUSED, said=_line(error.remedy))
    try:
        return _served(what, pair, folder)
    except Exception as error:  # a pair that was loaded must not fail; the table shows it
        return Row(*what, FAILED, said=_line(f"{type(error).__name__}: {error}"))


def _served(what: tuple[str, str], pair: Pair, folder: Path) -> Row:
    requests = _requests(pair.vocabulary)
    target = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.float32).eval()
    expected = {request.id: _generated(target, request) for request in requests}
    tokens = context = 0
    for architecture in ARCHITECTURES:
        handles: list[Handle] = []
        with LiveEngine(architecture, pair) as engine:
            serve(engine, Workload(requests, concurrency=CLIENTS), on_end=handles.append)
            context = engine.max_context
        for handle in handles:
            said = handle.result()
            if said != expected[handle.request.id][: len(said)]:
                return Row(*what, WRONG, tokens, context, f"request {handle.request.id} in {architecture.name}")
            tokens += len(said)
    return Row(*what, EXACT, tokens, context)


def _requests(vocabulary: int) -> tuple[Request, ...]:
    draw = random.Random(5)
    requests = []
    for i in range(REQUESTS):
        prompt = tuple(draw.randrange(3, vocabulary) for _ in range(draw.randint(1, LONGEST_PROMPT)))
        requests.append(Request(i, len(prompt), draw.randint(1, LONGEST_OUTPUT), prompt=prompt))
    return tuple(requests)


def _generated(target: Any, request: Request) -> list[int]:
    """Return the greedy output of transformers' generate, at full length."""
    prompt = torch.tensor([request.prompt])
    options = {"max_new_tokens": request.max_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.inference_mode():
        out = target.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return [int(token) for token in out[0, request.prompt_tokens :]]


def variants_of(names: Sequence[str]) -> list[Variant]:
    """Return all variants of these families, or of all families if none is named. Raises InputError."""
    known = families()
    for name in names:
        if name not in known:
            raise InputError("family", name, "transformers has no such decoder; use a model type, such as llama")
    every = sorted([*map(Variant, known), *VARIANTS], key=lambda each: (each.family, each.name))
    return [variant for variant in every if not names or variant.family in names]


def table(variants: Iterable[Variant]) -> Iterator[Row]:
    """Yield one row per variant."""
    logging.set_verbosity(CRITICAL)
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder, lane_settings(torch.device("cpu")):
            yield check(variant, Path(folder))


def summary(rows: list[Row], seconds: float) -> str:
    """Return the table as text."""
    by_outcome = {outcome: [row for row in rows if row.outcome == outcome] for outcome in (EXACT, REFUSED, NOT_MADE)}
    broken = [row for row in rows if row.outcome in (WRONG, FAILED)]
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
    lines = [
        "Decoder families of transformers, as tiny models with random weights (pdv check families).",
        f"{versions}, Python {platform.python_version()}, {platform.machine()}, CPU, float32; {seconds:.0f} s.",
        "",
        f"served, with every token equal to generate's: {len(by_outcome[EXACT])}",
        f"refused at load time, with the reason: {len(by_outcome[REFUSED])}",
        f"not built (transformers cannot, or not by shrinking the known sizes): {len(by_outcome[NOT_MADE])}",
        f"served with wrong tokens, or failed later: {len(broken)}",
    ]
    for outcome, rows_of in by_outcome.items():
        lines += ["", f"{outcome}:"]
        for row in rows_of:
            name = f"{row.family} ({row.variant})" if row.variant else row.family
            lines.append(f"  {name}" + (f": {row.said}" if row.said else ""))
    return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split())[:160]
