"""Compare an engine's pools with a plain transformers recomputation of the same sequences.

Outputs alone do not reveal a broken cache. The output of a permutation pair depends on the last token only, and a
real model often picks the right token in spite of wrong keys. So this check compares the keys and values of a slot,
the logits of a pass that reads them, and the tokens that were picked. The reference is a model call without slots:
ordinary attention over the whole sequence at once. Build permutation pairs at the largest layer scale that keeps
their closed form, so that the layers affect the logits and drafts are accepted as well as rejected.

Passes of different shapes round differently. So errors are relative and have a bound per dtype (32 layers at full
scale in bfloat16 on a CPU: 0.011 per layer, 0.026 per row, 0.02 for the logits). The error of a whole layer reveals
small errors everywhere. The worst row reveals one stale or misplaced token among hundreds: keys that are off by one
position differ by about 0.2, and those of a wrong token by more than 1.

`check_engine` waits until no step runs (`LiveEngine.quiet`), checks the requests that hold a slot, and lets the lanes
continue. To check during `serve`, call it from the progress function. The stop takes time, so do not measure times in
a run that is checked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engines.live.model.attention import PackedBatch, plain_attention
from engines.live.model.kv_cache import SlotPool
from engines.live.model.load_check import Forward
from engines.live.model.pairs import Pair
from engines.live.model.stages import Stages
from engines.live.serving.engine import LiveEngine


@dataclass(frozen=True)
class Tolerance:
    """The largest errors that rounding can explain.

    layer: relative Frobenius error of the keys, or the values, of one layer over the sequence. row: the same for one
    token. logits: of the logits. pick: how far the picked token may be below the best one, in standard deviations of
    the logits.
    """

    layer: float
    row: float
    logits: float
    pick: float


TOLERANCES = {
    torch.float32: Tolerance(1e-4, 1e-3, 1e-3, 1e-3),
    torch.bfloat16: Tolerance(0.03, 0.08, 0.06, 0.1),
    torch.float16: Tolerance(0.008, 0.02, 0.015, 0.025),
}


@dataclass(frozen=True)
class CacheReport:
    """The errors found in one model's cache of one sequence: those of Tolerance, for the worst layer.

    rows: number of tokens whose keys and values were compared. known: whether the engine's tables hold exactly these
    tokens. pick_gap: 0 for a draft model and for sampled output, which need not be the most likely.
    """

    slot: int
    role: str
    rows: int
    known: bool
    key_error: float
    value_error: float
    row_error: float
    logit_error: float
    pick_gap: float
    tolerance: Tolerance

    @property
    def failures(self) -> list[str]:
        """One message per error out of tolerance."""
        bounds = {
            "keys": (self.key_error, self.tolerance.layer),
            "values": (self.value_error, self.tolerance.layer),
            "worst row": (self.row_error, self.tolerance.row),
            "logits": (self.logit_error, self.tolerance.logits),
            "picked tokens": (self.pick_gap, self.tolerance.pick),
        }
        found = [] if self.known else ["the slot holds other tokens"]
        return found + [
            f"{name}: {error:.3g} > {most:.3g}" for name, (error, most) in bounds.items() if not error <= most
        ]

    @property
    def ok(self) -> bool:
        return not self.failures


@torch.inference_mode()
def check_slot(
    stages: Stages, slot: int, tokens: Sequence[int], prompt_tokens: int, *, greedy: bool = True,
    reference: Pair | None = None, tolerance: Tolerance | None = None, behind: int = 0,
) -> list[CacheReport]:  # fmt: skip
    """Compare a slot with a recomputation. Returns one report for the target and, if anything can be drafted, one
    for the draft.

    tokens: prompt and output so far; the last token has been picked, but no pass has read it yet. Nothing may run on
    the device meanwhile. reference: pair to recompute with; by default the engine's own transformers models, with
    ordinary attention. behind: output tokens that the draft model has not seen. The logits come from a pass of the
    engine, which writes the same rows and values as the next step will.
    """
    pair = reference or stages.pair
    tolerance = tolerance or TOLERANCES[stages.pair.dtype]
    length = len(tokens)
    sequence = torch.tensor(tokens, device=stages.device)
    known = int(stages.lengths[slot]) == length and bool((stages.tokens[slot, :length] == sequence).all())
    reports = []
    models = (
        ("target", stages.pair.target_forward, pair.target, stages.target_pool, 1),
        ("draft", stages.pair.draft_forward, pair.draft, stages.draft_pool, min(2 + behind, length - 1)),
    )
    for role, forward, plain, pool, unread in models if stages.max_draft_length else models[:1]:
        keys, values, logits = _recompute(plain, sequence)
        rows = length - unread
        key_errors = [_errors(pool.keys[i][slot, :rows], k[:rows]) for i, k in enumerate(keys)]
        value_errors = [_errors(pool.values[i][slot, :rows], v[:rows]) for i, v in enumerate(values)]
        seen = _read_pool(forward, pool, slot, sequence, unread)
        picks = role == "target" and greedy
        report = CacheReport(
            slot=slot, role=role, rows=rows, known=known, tolerance=tolerance,
            key_error=max(whole for whole, _ in key_errors), value_error=max(whole for whole, _ in value_errors),
            row_error=max(worst for _, worst in key_errors + value_errors),
            logit_error=_errors(seen, logits[rows:])[1],
            pick_gap=_pick_gap(logits[prompt_tokens - 1 : -1], sequence[prompt_tokens:]) if picks else 0.0,
        )  # fmt: skip
        reports.append(report)
    return reports


def check_engine(
    engine: LiveEngine, most: int | None = None, *, reference: Pair | None = None, seed: int = 0
) -> list[CacheReport]:
    """Stop the lanes briefly and check the requests that hold a slot and have output.

    most: check a random choice of at most this many. Raises RuntimeError if the engine has failed.
    """
    with engine.quiet():
        if engine.crash is not None:
            raise RuntimeError("the engine failed") from engine.crash
        states = [state for state in engine.scheduler.active.values() if state.emitted]
        if most is not None and most < len(states):
            states = random.Random(seed).sample(states, most)
        reports = []
        for state in states:
            assert state.slot is not None
            request, tokens = state.request, engine.sequence(state.id)
            reports += check_slot(
                engine.stages, state.slot, tokens, request.prompt_tokens,
                greedy=request.temperature == 0, reference=reference, behind=state.behind,
            )  # fmt: skip
        return reports


def _recompute(model: PreTrainedModel, sequence: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return keys and values per layer, [tokens, kv_heads, head_dim], and logits, [tokens, vocabulary]."""
    with plain_attention(model):
        out = model(input_ids=sequence[None], use_cache=True)
    layers = out["cache" if "cache" in out else "past_key_values"].layers  # the name in older transformers
    keys, values = ([getattr(la, name)[0].transpose(0, 1) for la in layers] for name in ("keys", "values"))
    return keys, values, out.logits[0]


def _read_pool(forward: Forward, pool: SlotPool, slot: int, sequence: Tensor, unread: int) -> Tensor:
    """Return the logits of the last `unread` tokens, [unread, vocabulary], computed from the pool."""
    slots = torch.tensor([slot], device=sequence.device)
    batch = PackedBatch(pool, slots, slots.new_tensor([len(sequence) - unread]), unread)
    return forward(sequence[-unread:], batch, None)


def _errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the relative Frobenius error of [rows, ...] as a whole, and of its worst row."""
    a, b = found.flatten(1).float(), expected.flatten(1).float()
    if not len(b):
        return 0.0, 0.0
    rows = (a - b).norm(dim=1) / b.norm(dim=1)
    return float((a - b).norm() / b.norm()), float(rows.max())


def _pick_gap(logits: Tensor, picked: Tensor) -> float:
    """Return how far the picked tokens are below the best ones, at worst, in standard deviations.

    logits: [n, vocabulary]. picked: [n].
    """
    logits = logits.float()
    gap = logits.amax(1) - logits.gather(1, picked[:, None])[:, 0]
    return float((gap / logits.std(1)).max())
