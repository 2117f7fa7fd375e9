"""Permutation pairs: models of any shape whose output is known in closed form.

All ordinary tokens lie on one cycle. After token t a target says pi(t), the next on the cycle, whatever came
before; its draft says the same except after a dialled share of tokens, so acceptance is a choice. A live run of
such a pair costs what the real models cost, and every token and every acceptance can be checked.

The cycle is cut into equal regions, one for each alpha, and a region's wrong tokens are drawn at random,
exactly their share of it. An output walks along the cycle, and much less than a region, so a request's acceptance
is its region's: prompts that end in random tokens start in every region alike, and acceptance varies from request
to request. With one alpha it does not.

Nothing here needs torch; `engines.live.model.permutation` builds the models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from engines.errors import InputError
from engines.pairs.shapes import ModelShape, find_shape

PREFIX = "permutation:"
DEFAULT_ALPHA = 0.8
DEFAULT_LAYER_SCALE = 0.05
LEAST_MARGIN = 2.0  # the worst token has about half of the mean winner's logit


@dataclass(frozen=True)
class PermutationSpec:
    """Which permutation pair.

    target, draft: names in engines.pairs.shapes.SHAPES, of one vocabulary. alphas: for each region of the cycle, the
    probability that a draft is right. layer_scale: factor on the layers' output projections; at 1 the layers have
    their full say, which is what a check of the caches wants. seed: of the cycle and the weights.
    """

    target: str
    draft: str
    alphas: tuple[float, ...] = (DEFAULT_ALPHA,)
    layer_scale: float = DEFAULT_LAYER_SCALE
    seed: int = 0
    layers: int | None = None

    def __post_init__(self) -> None:
        most = min(find_shape(name).layers for name in (self.target, self.draft))
        if self.layers is not None and not 1 <= self.layers <= most:
            raise InputError("layers", self.layers, f"use 1 to {most}, which both models have")
        sizes = [shape.vocabulary for shape in (self.target_shape, self.draft_shape)]
        if sizes[0] != sizes[1]:
            remedy = f"it has {sizes[1]} tokens and {self.target} has {sizes[0]}; use shapes of one family"
            raise InputError("draft", self.draft, remedy)
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise InputError("alpha", list(self.alphas), "give one or more probabilities, 0 to 1")
        if len(self.alphas) > sizes[0] // 64:
            raise InputError("alpha", f"{len(self.alphas)} regions", f"use at most {sizes[0] // 64}")
        if not 0 < self.layer_scale <= 1:
            raise InputError("scale", self.layer_scale, "use more than 0 and at most 1")
        if self.seed < 0:
            raise InputError("seed", self.seed, "use 0 or more")

    @property
    def target_shape(self) -> ModelShape:
        return find_shape(self.target).with_layers(self.layers)

    @property
    def draft_shape(self) -> ModelShape:
        return find_shape(self.draft).with_layers(self.layers)

    @property
    def closed_form(self) -> bool:
        """Whether both models surely say what the permutations say. Deep, narrow models cease to at some scale."""
        return min(margin(shape, self.layer_scale) for shape in (self.target_shape, self.draft_shape)) >= LEAST_MARGIN

    @property
    def name(self) -> str:
        """The name that parse_pair reads back."""
        text = f"{PREFIX}{self.target}+{self.draft}:alpha={','.join(f'{alpha:g}' for alpha in self.alphas)}"
        if self.layer_scale != DEFAULT_LAYER_SCALE:
            text += f":scale={self.layer_scale:g}"
        if self.layers is not None:
            text += f":layers={self.layers}"
        return text + (f":seed={self.seed}" if self.seed else "")


def margin(shape: ModelShape, layer_scale: float) -> float:
    """How far the right token's logit stands out: its mean over the largest of all wrong ones, as worked out in
    engines.live.model.permutation."""
    settings = shape.settings
    winner = math.sqrt(settings["hidden_size"] / (1 + 0.5 * settings["num_hidden_layers"] * layer_scale**2))
    return winner / math.sqrt(4 * math.log(shape.vocabulary))


def parse_pair(name: str) -> PermutationSpec:
    """The pair that a name means: permutation:TARGET+DRAFT, then any of :alpha=A or :alpha=A,B,... (one region
    each), :scale=S, :layers=L and :seed=N. Raises InputError."""
    shapes, *options = name.removeprefix(PREFIX).split(":")
    target, plus, draft = shapes.partition("+")
    if not name.startswith(PREFIX) or not plus:
        raise InputError("pair", name, f"write {PREFIX}llama2-7b+tinyllama-1.1b, then :alpha=0.8 if wanted")
    values = dict(option.partition("=")[::2] for option in options)
    if len(values) < len(options):
        raise InputError("pair", name, "give every option once")
    unknown = sorted(values.keys() - {"alpha", "scale", "layers", "seed"})
    if unknown:
        remedy = f'"{unknown[0]}" is no option of a permutation pair; use alpha, scale, layers, seed'
        raise InputError("pair", name, remedy)
    try:
        alphas = tuple(float(alpha) for alpha in values.get("alpha", str(DEFAULT_ALPHA)).split(","))
        scale, seed = float(values.get("scale", DEFAULT_LAYER_SCALE)), int(values.get("seed", 0))
        layers = int(values["layers"]) if "layers" in values else None
    except ValueError as error:
        remedy = f"alpha and scale are numbers, layers and seed whole ones ({error})"
        raise InputError("pair", name, remedy) from error
    return PermutationSpec(target, draft, alphas, scale, seed, layers)


@dataclass(frozen=True, eq=False)
class Cycle:
    """The walk of a permutation pair.

    order: [n] int64, the ordinary tokens as they follow one another. place: [vocabulary] int64, a token's place
    in order; special tokens, which a prompt may end in, continue as the token at place 0 does. right: [n] bool,
    whether the draft model says the right token after order[i].
    """

    order: np.ndarray
    place: np.ndarray
    right: np.ndarray

    @cached_property
    def target_next(self) -> np.ndarray:
        """[n] int64: what the target says after order[i]."""
        return np.roll(self.order, -1)

    @cached_property
    def draft_next(self) -> np.ndarray:
        """[n] int64: what the draft says after order[i]. The wrong ones exchange their successors in a ring, so
        this is a permutation too."""
        said, wrong = self.target_next.copy(), np.flatnonzero(~self.right)
        said[wrong] = np.roll(said[wrong], -1)
        return said

    def walk(self, prompt: Sequence[int], count: int) -> np.ndarray:
        """[count + 1] int64: places of the prompt's last token and of the `count` tokens after it."""
        return (self.place[prompt[-1]] + np.arange(count + 1)) % len(self.order)


@lru_cache(maxsize=8)
def make_cycle(spec: PermutationSpec) -> Cycle:
    """The cycle of a spec, whatever its layer_scale; the same on every machine."""
    vocabulary = spec.target_shape.vocabulary
    special = sorted({*spec.target_shape.special_tokens, *spec.draft_shape.special_tokens})
    rng = np.random.default_rng(spec.seed)
    order = rng.permutation(np.setdiff1d(np.arange(vocabulary), special))
    place = np.zeros(vocabulary, dtype=np.int64)
    place[order] = np.arange(len(order))
    right = np.ones(len(order), dtype=bool)
    for alpha, region in zip(spec.alphas, np.array_split(np.arange(len(order)), len(spec.alphas)), strict=True):
        right[rng.choice(region, round((1 - alpha) * len(region)), replace=False)] = False
    if (~right).sum() == 1:
        right[:] = True  # one token has nobody to exchange its successor with
    return Cycle(order, place, right)


def expected_output(spec: PermutationSpec, prompt: Sequence[int], count: int) -> np.ndarray:
    """[count] int64: the target's greedy output after a prompt. Raises InputError where layers have their full
    say and nothing is known in closed form."""
    cycle = _closed_form(spec)
    return cycle.order[cycle.walk(prompt, count)[1:]]


def expected_tape(spec: PermutationSpec, prompt: Sequence[int], count: int) -> np.ndarray:
    """[count] int8: the acceptance tape (engines.record.run.Run) of such an output. Raises InputError as above."""
    cycle = _closed_form(spec)
    tape = np.full(count, -1, dtype=np.int8)
    tape[1:] = cycle.right[cycle.walk(prompt, count)[1:count]]
    return tape


def _closed_form(spec: PermutationSpec) -> Cycle:
    if not spec.closed_form:
        remedy = "layers that say so much may outvote the permutation; use a smaller scale, or compare caches only"
        raise InputError("scale", spec.layer_scale, remedy)
    return make_cycle(spec)
