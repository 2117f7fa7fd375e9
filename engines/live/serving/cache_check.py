"""Compares an engine's pools with a plain transformers recomputation of the same sequences.

Output alone does not show a broken cache: a permutation pair looks at the last token only, and a real model says
the right thing after many a wrong key. So the keys and values of a slot, the logits of a pass that reads them, and
the tokens that were picked are compared with a model call that knows nothing of slots: ordinary attention over the
whole sequence at once. Build permutation pairs at the largest layer scale that keeps their closed form, so that
layers have their say and drafts are accepted as well as rejected.

Two passes of different shape round differently, so errors are relative to the numbers' own size and bounded by
dtype (32 layers at full scale in bfloat16 on a CPU: 0.011 a layer, 0.026 a row, 0.02 the logits). A whole
layer's error catches what is slightly wrong everywhere; the worst single row catches one stale or misplaced token
among hundreds: keys that are off by one position differ by about 0.2, and a token that is not the right one by
more than 1.

When to check: `check_engine` waits for a quiet moment (`LiveEngine.quiet`: running steps end, none starts), looks
at every request that holds a slot, and lets the lanes go on. To look while `serve` is at work, call it from serve's
progress function. Such a stop costs time, so a checked run is not one to time.
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
from engines.live.model.pairs import Forward, Pair
from engines.live.model.stages import Stages
from engines.live.serving.engine import LiveEngine


@dataclass(frozen=True)
class Tolerance:
    """Largest errors that rounding explains. layer: relative Frobenius error of one layer's keys, or values, over
    the sequence. row: the same of one token. logits: of the logits. pick: how far below the best token the picked
    one may be, in standard deviations of the logits."""

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
    """What the comparison found for one model's view of one sequence; errors as in Tolerance, worst layer.

    rows: tokens whose keys and values were compared. known: whether the engine's tables hold just these tokens.
    pick_gap is 0 for a draft model, and for sampled output, which need not be the likeliest.
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
        """What is out of tolerance, in words."""
        bounds = {
            "keys": (self.key_error, self.tolerance.layer),
            "values": (self.value_error, self.tolerance.layer),
            "worst row": (self.row_error, self.tolerance.row),
            "logits": (self.logit_error, self.tolerance.logits),
            "picked tokens": (self.pick_gap, self.tolerance.pick),
        }
        found = [] if self.known else ["the slot holds other tokens or another number of them"]
        return found + [
            f"{name}: {error:.3g} > {most:.3g}" for name, (error, most) in bounds.items() if not error <= most
        ]

    @property
    def ok(self) -> bool:
        return not self.failures


@torch.inference_mode()
def check_slot(
    stages: Stages,
    slot: int,
    tokens: Sequence[int],
    prompt_tokens: int,
    *,
    greedy: bool = True,
    reference: Pair | None = None,
    tolerance: Tolerance | None = None,
) -> list[CacheReport]:
    """Compare what a slot holds with a recomputation; one report for the target and one for the draft.

    tokens: the sequence's prompt and output so far, of which the last has been picked and not yet read. Nothing
    may run on the device meanwhile. reference: a pair to recompute with; by default the engine's own transformers
    models, with ordinary attention. The pass that makes the logits is the engine's own; it writes the rows that the
    next step writes, with the same values.
    """
    pair = reference or stages.pair
    tolerance = tolerance or TOLERANCES[stages.pair.dtype]
    length = len(tokens)
    sequence = torch.tensor(tokens, device=stages.device)
    known = int(stages.lengths[slot]) == length and bool((stages.tokens[slot, :length] == sequence).all())
    reports = []
    for role, forward, plain, pool, unread in (
        ("target", stages.pair.target_forward, pair.target, stages.target_pool, 1),
        ("draft", stages.pair.draft_forward, pair.draft, stages.draft_pool, min(2, length - 1)),
    ):
        keys, values, logits = _recompute(plain, sequence)
        rows = length - unread
        key_errors = [_errors(pool.keys[i][slot, :rows], k[:rows]) for i, k in enumerate(keys)]
        value_errors = [_errors(pool.values[i][slot, :rows], v[:rows]) for i, v in enumerate(values)]
        seen = _read_pool(forward, pool, slot, sequence, unread)
        picks = role == "target" and greedy
        reports.append(
            CacheReport(
                slot=slot,
                role=role,
                rows=rows,
                known=known,
                key_error=max(whole for whole, _ in key_errors),
                value_error=max(whole for whole, _ in value_errors),
                row_error=max(worst for _, worst in key_errors + value_errors),
                logit_error=_errors(seen, logits[rows:])[1],
                pick_gap=_pick_gap(logits[prompt_tokens - 1 : -1], sequence[prompt_tokens:]) if picks else 0.0,
                tolerance=tolerance,
            )
        )
    return reports


def check_engine(
    engine: LiveEngine, most: int | None = None, *, reference: Pair | None = None, seed: int = 0
) -> list[CacheReport]:
    """Stop the lanes for a moment and check the requests that hold a slot and have output: all, or a random `most`
    of them. Raises RuntimeError if the engine broke."""
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
                greedy=request.temperature == 0, reference=reference,
            )  # fmt: skip
        return reports


def _recompute(model: PreTrainedModel, sequence: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Keys and values of each layer, [tokens, kv_heads, head_dim], and logits, [tokens, vocabulary]."""
    with plain_attention(model):
        out = model(input_ids=sequence[None], use_cache=True)
    layers = out.past_key_values.layers
    return (
        [la.keys[0].transpose(0, 1) for la in layers],
        [la.values[0].transpose(0, 1) for la in layers],
        out.logits[0],
    )


def _read_pool(forward: Forward, pool: SlotPool, slot: int, sequence: Tensor, unread: int) -> Tensor:
    """Logits of the last `unread` tokens, [unread, vocabulary], from the pool's keys and values before them."""
    slots = torch.tensor([slot], device=sequence.device)
    batch = PackedBatch(pool, slots, slots.new_tensor([len(sequence) - unread]), unread)
    return forward(sequence[-unread:], batch, None)


def _errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Relative Frobenius error of [rows, ...] as a whole, and of its worst row."""
    a, b = found.flatten(1).float(), expected.flatten(1).float()
    if not len(b):
        return 0.0, 0.0
    rows = (a - b).norm(dim=1) / b.norm(dim=1)
    return float((a - b).norm() / b.norm()), float(rows.max())


def _pick_gap(logits: Tensor, picked: Tensor) -> float:
    """How far the picked tokens, [n], are below the best of [n, vocabulary] at worst, in standard deviations."""
    logits = logits.float()
    gap = logits.amax(1) - logits.gather(1, picked[:, None])[:, 0]
    return float((gap / logits.std(1)).max())
