"""Check whether outputs are those of the target alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from engines.live.model.attention import plain_attention
from engines.live.model.pairs import Pair
from engines.live.model.verification import gumbel, request_key
from engines.pairs.permutation import PREFIX, PermutationSpec, expected_output, parse_pair
from engines.policy.request import Request
from experiments.bench.plain import generate, plain_models

ROUNDING = {torch.bfloat16: 2.0**-6, torch.float32: 1e-5}  # largest difference of logits, relative to the largest
GENERATED = 4  # number of prompts that transformers also completes if there is no closed form


class Expected(Protocol):
    """Outputs of the target alone. exact: every output must be equal; otherwise rounding may cause differences."""

    exact: bool
    what: str

    def tokens(self, prompt: Sequence[int], count: int) -> list[int] | None:
        """Return the first `count` greedy output tokens after a prompt; None if unknown."""


class ClosedForm:
    """The outputs of a permutation pair."""

    exact, what = True, "the closed form"

    def __init__(self, spec: PermutationSpec) -> None:
        self.spec = spec

    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        return [int(token) for token in expected_output(self.spec, prompt, count)]


class Generated:
    """The outputs of transformers' generate, for the first few prompts."""

    what = "transformers' generate"

    def __init__(self, pair: Pair, most: int = GENERATED) -> None:
        self.pair, self.most = pair, most
        self.exact = pair.dtype is torch.float32
        self._known: dict[tuple[int, ...], list[int]] = {}

    def tokens(self, prompt: Sequence[int], count: int) -> list[int] | None:
        key = tuple(prompt)
        known = self._known.get(key, [])
        if len(known) < count:
            if not known and len(self._known) >= self.most:
                return None
            with plain_models(self.pair):
                known = self._known[key] = generate(self.pair, [key], count)[0]
        return known[:count]


def expected_of(name: str, pair: Pair) -> Expected:
    """Return the expected outputs of a pair. name: its name."""
    if name.startswith(PREFIX) and parse_pair(name).closed_form:
        return ClosedForm(parse_pair(name))
    return Generated(pair)


def first_difference(a: Sequence[int], b: Sequence[int], count: int) -> int | None:
    """Return the first of `count` positions at which the tokens differ or one is missing; None if there is none."""
    return next((i for i in range(count) if i >= min(len(a), len(b)) or a[i] != b[i]), None)


@dataclass(frozen=True)
class Agreement:
    """Result of a comparison of outputs.

    checked: outputs whose expected tokens are known. equal: those that are equal. first: describes the first
    difference.
    """

    checked: int
    equal: int
    first: str = ""

    def __str__(self) -> str:
        return f"{self.equal} of {self.checked}" if self.checked else "-"


def agreement(expected: Expected, requests: Iterable[Request], outputs: Mapping[int, Sequence[int]]) -> Agreement:
    """Compare the outputs of greedy requests, by request ID. A missing output counts as empty."""
    checked = equal = 0
    first = ""
    for request in requests:
        right = expected.tokens(request.prompt or (), request.max_tokens)
        if right is None:
            continue
        said = list(outputs.get(request.id, ()))
        checked, equal = checked + 1, equal + (said == right)
        if said != right and not first:
            first = f"request {request.id}, output token {first_difference(said, right, len(said) + 1)}"
    return Agreement(checked, equal, first)


@torch.inference_mode()
def is_tie(pair: Pair, request: Request, output: Sequence[int], tokens: Sequence[int]) -> bool:
    """Return whether each of these tokens equals the target's best one, within rounding, after the output so far.

    Scores are the logits, or logits / temperature + noise, of a plain transformers pass without slots.
    """
    context = torch.tensor([[*(request.prompt or ()), *output]], device=pair.device)
    with plain_attention(pair.target):
        scores = pair.target(context, use_cache=False, logits_to_keep=1).logits[0].float()
    allowed = ROUNDING[pair.dtype] * scores.abs().max()
    if request.temperature:
        key, place = torch.tensor([[request_key(request.seed, request.id)], [context.numel()]], device=pair.device)
        scores = scores / request.temperature + gumbel(key, place, pair.vocabulary)
        allowed = allowed / request.temperature
    return bool((scores.max() - scores[0, list(tokens)] <= allowed).all())
