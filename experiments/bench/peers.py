"""Measure transformers' own generation on the same pair and prompts, in the same process."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pandas as pd
import torch
from transformers import GenerationConfig

from calibrate.stage_costs import Progress
from engines.live.device.host import lane_settings
from engines.live.model.pairs import Pair
from engines.policy.request import Request
from experiments.bench.engines import closed_loop, free_memory
from experiments.bench.exactness import Expected, agreement
from experiments.bench.plain import generate, plain_models
from experiments.bench.settings import BenchSettings

OUTPUT_TOKENS = 64  # limit; the speed hardly depends on it, and some systems are slow
BLOCK_TOKENS = 256  # per block of transformers' paged cache
Outputs = list[list[int]]


def measure_peers(pair: Pair, settings: BenchSettings, expected: Expected, progress: Progress) -> pd.DataFrame:
    """Return one row per system and number of requests. Throughput excludes set-up and warm-up.

    A system that this machine or version cannot run gets a row with the reason.
    """
    top = max(settings.concurrencies)
    requests = closed_loop(pair, settings, top, top, min(OUTPUT_TOKENS, settings.output_tokens)).requests
    several = [n for n in settings.concurrencies if n > 1]
    plans: list[tuple[str, int, Callable[[Pair, Sequence[Request]], tuple[Outputs, float]]]] = [
        ("generate, target alone", 1, _alone),
        (f"assisted generation, k = {settings.draft_length}", 1, _assisted),
        *(("generate, static batch", n, _alone) for n in several),
        *(("continuous batching", n, _continuous) for n in several),
    ]
    rows = []
    for i, (system, count, run) in enumerate(plans):
        progress(f"{system}, {count} request{'s' * (count > 1)}", i / len(plans))
        rows.append({"system": system, "requests": count, **_row(pair, settings, expected, requests[:count], run)})
        free_memory(pair.device)
    return pd.DataFrame(rows)


def _row(
    pair: Pair, settings: BenchSettings, expected: Expected, requests: Sequence[Request],
    run: Callable[[Pair, Sequence[Request]], tuple[Outputs, float]],
) -> dict[str, Any]:  # fmt: skip
    tokens = requests[0].max_tokens
    row: dict[str, Any] = {"output_tokens": tokens, "throughput_tokens_per_s": float("nan"), "seconds": float("nan")}
    try:
        with plain_models(pair, settings.draft_length), _threads(pair.device):
            outputs, seconds = run(pair, requests)
    except Exception as error:  # another library may raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        return {**row, "checked": 0, "equal": 0, "note": f"not available: {type(error).__name__}: {reason}"}
    found = agreement(expected, requests, {r.id: out for r, out in zip(requests, outputs, strict=True)})
    row |= {"throughput_tokens_per_s": sum(map(len, outputs)) / seconds, "seconds": seconds}
    return {**row, "checked": found.checked, "equal": found.equal, "note": found.first}


def _alone(pair: Pair, requests: Sequence[Request]) -> tuple[Outputs, float]:
    return _generated(pair, requests, assisted=False)


def _assisted(pair: Pair, requests: Sequence[Request]) -> tuple[Outputs, float]:
    return _generated(pair, requests, assisted=True)


def _generated(pair: Pair, requests: Sequence[Request], assisted: bool) -> tuple[Outputs, float]:
    prompts = [request.prompt or () for request in requests]
    generate(pair, prompts, 8, assisted)  # warm-up
    return _timed(pair, lambda: generate(pair, prompts, requests[0].max_tokens, assisted))


def _continuous(pair: Pair, requests: Sequence[Request]) -> tuple[Outputs, float]:
    """Run continuous batching twice: the first call sets up and warms up, the second is timed."""
    model: Any = pair.target
    prompts = [list(request.prompt or ()) for request in requests]
    config = GenerationConfig(
        max_new_tokens=requests[0].max_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )  # fmt: skip

    def serve() -> Outputs:
        results = model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=_memory(pair, requests),
            persistent_manager=True, progress_bar=False,
        )  # fmt: skip
        if len(results) != len(prompts):
            raise RuntimeError(f"{len(results)} of {len(prompts)} requests came back")
        return [list(result.generated_tokens) for result in results.values()]

    logger = logging.getLogger("ContinuousBatchingLogger")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        serve()
        return _timed(pair, serve)
    finally:
        logger.setLevel(level)
        if hasattr(model, "destroy_cached_continuous_batching_manager"):
            model.destroy_cached_continuous_batching_manager()


def _memory(pair: Pair, requests: Sequence[Request]) -> Any:
    """Return the cache settings: on a GPU the default (most of the free memory), on a CPU what the requests need."""
    if pair.device.type != "cpu":
        return None
    from transformers import ContinuousBatchingConfig  # not in every version

    tokens = requests[0].prompt_tokens + requests[0].max_tokens
    blocks = len(requests) * (math.ceil(tokens / BLOCK_TOKENS) + 1)
    return ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=len(requests) * tokens)


def _threads(device: torch.device) -> AbstractContextManager[None]:
    """Use one thread on a CPU, as a lane does: in small models, further threads mostly wait."""
    return lane_settings(device) if device.type == "cpu" else nullcontext()


def _timed(pair: Pair, work: Callable[[], Outputs]) -> tuple[Outputs, float]:
    _settle(pair.device)
    started = time.perf_counter()
    outputs = work()
    _settle(pair.device)
    return outputs, time.perf_counter() - started


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
