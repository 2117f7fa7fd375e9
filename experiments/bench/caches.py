"""Check that the slot pools equal a plain recomputation, and that the check notices damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from calibrate.stage_costs import Progress
from engines.errors import InputError
from engines.live.model.pairs import load_pair
from engines.live.serving.cache_check import CacheReport, check_engine, check_slot
from engines.live.serving.engine import LiveEngine
from engines.live.serving.prompts import prompts_for
from engines.live.serving.serve import serve
from engines.pairs.permutation import PREFIX, parse_pair
from engines.policy.architecture import Architecture, Step, load_architecture
from engines.workload.workload import FixedLength, Workload, make_workload
from experiments.bench.settings import BenchSettings
from experiments.runner.preflight import check_fits, context_on

REQUESTS, CLIENTS, SAMPLED, OUTPUT_TOKENS = 8, 4, 2, 48
LAYER_SCALES = (1.0, 0.5, 0.2, 0.1, 0.05)


@dataclass
class CacheFindings:
    """Results for the pools of one architecture.

    sequences: number compared (each for both models, if both run). worst: largest errors by kind, see
    engines.live.serving.cache_check.CacheReport. failures: errors out of tolerance. damage: by kind, whether the
    check noticed slots that were damaged on purpose.
    """

    architecture: str
    sequences: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    damage: dict[str, bool] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether something was compared, nothing was wrong, and all damage was noticed."""
        looked = self.sequences > 0 and set(self.damage) == set(DAMAGES)
        return looked and not self.failures and all(self.damage.values())

    @property
    def failure(self) -> str:
        """Why the check failed; empty if it passed."""
        if self.ok:
            return ""
        if self.failures:
            return f"the cache is wrong: {self.failures[0]}"
        unnoticed = [name for name, noticed in self.damage.items() if not noticed]
        if unnoticed:
            return f"damage made on purpose ({unnoticed[0]}) was not noticed"
        return "no sequence was compared, or none was damaged on purpose; use longer outputs"

    def add(self, reports: list[CacheReport]) -> None:
        self.sequences += sum(report.role == "target" for report in reports)
        for report in reports:
            for name in ("key_error", "value_error", "row_error", "logit_error", "pick_gap"):
                self.worst[name] = max(self.worst.get(name, 0.0), getattr(report, name))
            self.failures += [f"{report.role}, slot {report.slot}: {failure}" for failure in report.failures]


def _from_another_slot(pool: Tensor, slot: int, other: int) -> None:
    pool[slot] = pool[other]


def _one_place_late(pool: Tensor, slot: int, other: int) -> None:
    pool[slot, 1:] = pool[slot, :-1].clone()


DAMAGES: dict[str, Callable[[Tensor, int, int], None]] = {
    "another slot": _from_another_slot,
    "wrong length": _one_place_late,
}


def lengths_of(settings: BenchSettings) -> tuple[int, int]:
    """Return the tokens per prompt and per output."""
    return settings.prompt_tokens, min(OUTPUT_TOKENS, settings.output_tokens)


def check_room(settings: BenchSettings) -> None:
    """Raise InputError, before anything is loaded, if this exceeds the pair or the device."""
    needed = sum(lengths_of(settings))
    for name in settings.architectures:
        architecture = _small(name, settings)
        most = context_on(architecture, settings.pair)
        if needed > most:
            raise InputError("prompt_tokens + output_tokens", needed, f"the pair supports {most}; use shorter ones")
        check_fits(architecture, settings.pair, device=settings.device, max_context=needed)


def check_caches(settings: BenchSettings, progress: Progress) -> list[CacheFindings]:
    """Serve a few requests with each architecture, and compare sampled sequences while they run.

    Once per architecture, while two requests run, a slot is damaged and restored. For a permutation pair, this loads
    the variant whose layers affect the logits most while drafts are still accepted.
    """
    progress("loading the pair", 0.0)
    pair = load_pair(_with_strong_layers(settings.pair), device=settings.device)
    prompt, output = lengths_of(settings)
    lengths = FixedLength(prompt), FixedLength(output)
    workload = prompts_for(pair, make_workload(REQUESTS, *lengths, concurrency=CLIENTS), settings.seed)
    found: list[CacheFindings] = []
    for name in settings.architectures:
        progress(name, len(found) / len(settings.architectures))
        with LiveEngine(_small(name, settings), pair, prompt + output, prefill_tokens=prompt) as engine:
            found.append(_look_into(engine, workload))
    return found


def _look_into(engine: LiveEngine, workload: Workload) -> CacheFindings:
    findings = CacheFindings(engine.architecture.name)

    def look(done: int, total: int) -> None:
        findings.add(check_engine(engine, SAMPLED, seed=done))
        if not findings.damage:
            findings.damage = _damage(engine)

    serve(engine, workload, look, complete_tapes=False)
    return findings


def _with_strong_layers(name: str) -> str:
    if not name.startswith(PREFIX):
        return name
    specs = [replace(parse_pair(name), layer_scale=scale) for scale in LAYER_SCALES]
    return next((spec for spec in specs if spec.closed_form), specs[-1]).name


def _small(name: str, settings: BenchSettings) -> Architecture:
    """Return the architecture with a few slots, and batches that are no larger."""
    architecture = load_architecture(name)
    limits = {
        step: min(limit, CLIENTS) for lane in architecture.lanes for step, limit in lane.steps.items()
    } | {Step.PREFILL: 1}  # fmt: skip
    return settings.layout(architecture.with_batch_limits(limits)).replace(slots=CLIENTS)


@torch.inference_mode()
def _damage(engine: LiveEngine) -> dict[str, bool]:
    """Damage the keys of one layer of a slot in each way, check, and restore them. Needs two running requests."""
    with engine.quiet():
        states = [state for state in engine.scheduler.active.values() if state.emitted]
        slots = [state.slot for state in states if state.slot is not None]
        if len(slots) < 2:
            return {}
        (slot, other), state = slots[:2], states[0]
        pool = engine.stages.target_pool.keys[-1]
        noticed = {}
        for name, damage in DAMAGES.items():
            kept = pool[slot].clone()
            damage(pool, slot, other)
            tokens = engine.sequence(state.id)
            reports = check_slot(engine.stages, slot, tokens, state.request.prompt_tokens)
            noticed[name] = any(report.failures for report in reports)
            pool[slot] = kept
        if pool.is_cuda:
            torch.cuda.synchronize(pool.device)  # the lanes continue on other streams
        return noticed
