"""Permutation pairs: models of any shape whose output is known in closed form.

All ordinary tokens lie on one cycle. After token t, the target picks pi(t), the next one on the cycle, whatever came
before. The draft model picks the same, except after a chosen share of the tokens, so its acceptance can be set. A
live run of such a pair costs as much as with the real models, and every token and acceptance can be checked.

The cycle is cut into equal regions, one per alpha. In each region, exactly a share 1 - alpha of the tokens, drawn at
random, is followed by a wrong draft. An output covers much less of the cycle than a region, so a request has the
acceptance of the region in which it starts. Prompts that end in random tokens start in every region equally often, so
acceptance varies between requests unless there is only one alpha.

This module needs no torch; `engines.live.model.permutation` builds the models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from engines.errors import InputError
from engines.pairs.shapes import ModelShape, find_shape

PREFIX = "permutation:"
DEFAULT_ALPHA = 0.8
DEFAULT_LAYER_SCALE = 0.05
LEAST_MARGIN = 2.0  # the worst token has about half of the mean logit of the right tokens


@dataclass(frozen=True)
class PermutationSpec:
    """The specification of a permutation pair.

    target, draft: names in engines.pairs.shapes.SHAPES, with the same vocabulary.
    alphas: probability that a draft agrees, per region of the cycle.
    layer_scale: factor on the layers' output projections. At 1 the layers have their full effect, as a check of the
    KV cache needs.
    seed: of the cycle and the weights. layers: number of layers of both models, None for those of their shapes.
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
            raise InputError("layers", self.layers, f"use 1 to {most}, the layers that both models have")
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
        """Whether both models certainly follow the permutations. Deep, narrow models do not at large layer scales."""
        return min(margin(shape, self.layer_scale) for shape in (self.target_shape, self.draft_shape)) >= LEAST_MARGIN

    @property
    def name(self) -> str:
        """The name, as parse_pair reads it."""
        text = f"{PREFIX}{self.target}+{self.draft}:alpha={','.join(f'{alpha:g}' for alpha in self.alphas)}"
        if self.layer_scale != DEFAULT_LAYER_SCALE:
            text += f":scale={self.layer_scale:g}"
        if self.layers is not None:
            text += f":layers={self.layers}"
        return text + (f":seed={self.seed}" if self.seed else "")


def without_alpha(pair: str) -> str:
    """Return the name of a pair without its alphas, on which no stage's cost depends. Other names stay the same."""
    return re.sub(":alpha=[^:]*", "", pair) if pair.startswith(PREFIX) else pair


def margin(shape: ModelShape, layer_scale: float) -> float:
    """Return the mean logit of the right tokens over the largest of all wrong ones.

    engines.live.model.permutation derives this estimate.
    """
    settings = shape.settings
    winner = math.sqrt(settings["hidden_size"] / (1 + 0.5 * settings["num_hidden_layers"] * layer_scale**2))
    return winner / math.sqrt(4 * math.log(shape.vocabulary))


def parse_pair(name: str) -> PermutationSpec:
    """Parse the name of a permutation pair. Raises InputError.

    A name is permutation:TARGET+DRAFT, followed by any of :alpha=A or :alpha=A,B,... (one region each), :scale=S,
    :layers=L and :seed=N.
    """
    shapes, *options = name.removeprefix(PREFIX).split(":")
    target, plus, draft = shapes.partition("+")
    if not name.startswith(PREFIX) or not plus:
        raise InputError("pair", name, f"write {PREFIX}llama2-7b+tinyllama-1.1b, then :alpha=0.8 if wanted")
    values = dict(option.partition("=")[::2] for option in options)
    if len(values) < len(options):
        raise InputError("pair", name, "give every option only once")
    unknown = sorted(values.keys() - {"alpha", "scale", "layers", "seed"})
    if unknown:
        remedy = f'"{unknown[0]}" is no option of a permutation pair; use alpha, scale, layers, seed'
        raise InputError("pair", name, remedy)
    try:
        alphas = tuple(float(alpha) for alpha in values.get("alpha", str(DEFAULT_ALPHA)).split(","))
        scale, seed = float(values.get("scale", DEFAULT_LAYER_SCALE)), int(values.get("seed", 0))
        layers = int(values["layers"]) if "layers" in values else None
    except ValueError as error:
        remedy = f"alpha and scale are numbers, layers and seed whole numbers ({error})"
        raise InputError("pair", name, remedy) from error
    return PermutationSpec(target, draft, alphas, scale, seed, layers)


@dataclass(frozen=True, eq=False)
class Cycle:
    """The cycle of a permutation pair.

    order: [n] int64, the ordinary tokens in the order of the cycle. place: [vocabulary] int64, each token's index in
    order; special tokens, in which a prompt may end, have index 0. right: [n] bool, whether the draft model picks the
    right token after order[i].
    """

    order: np.ndarray
    place: np.ndarray
    right: np.ndarray

    @cached_property
    def target_next(self) -> np.ndarray:
        """[n] int64: the token that the target picks after order[i]."""
        return np.roll(self.order, -1)

    @cached_property
    def draft_next(self) -> np.ndarray:
        """[n] int64: the token that the draft model picks after order[i].

        Tokens with a wrong draft exchange their successors in a ring, so this is a permutation too.
        """
        said, wrong = self.target_next.copy(), np.flatnonzero(~self.right)
        said[wrong] = np.roll(said[wrong], -1)
        return said

    def walk(self, prompt: Sequence[int], count: int) -> np.ndarray:
        """Return the places of the prompt's last token and of the `count` tokens after it, [count + 1] int64."""
        return (self.place[prompt[-1]] + np.arange(count + 1)) % len(self.order)


@lru_cache(maxsize=8)
def make_cycle(spec: PermutationSpec) -> Cycle:
    """Return the cycle of a spec. It does not depend on layer_scale or on the machine."""
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
        right[:] = True  # a single token has no other to exchange its successor with
    return Cycle(order, place, right)


def expected_output(spec: PermutationSpec, prompt: Sequence[int], count: int) -> np.ndarray:
    """Return the target's greedy output after a prompt, [count] int64.

    Raises InputError if the layer scale is too large for the output to be known in closed form.
    """
    cycle = _closed_form(spec)
    return cycle.order[cycle.walk(prompt, count)[1:]]


def expected_tape(spec: PermutationSpec, prompt: Sequence[int], count: int) -> np.ndarray:
    """Return the acceptance tape of that output, [count] int8 (engines.record.run.Run). Raises InputError too."""
    cycle = _closed_form(spec)
    tape = np.full(count, -1, dtype=np.int8)
    tape[1:] = cycle.right[cycle.walk(prompt, count)[1:count]]
    return tape


def _closed_form(spec: PermutationSpec) -> Cycle:
    if not spec.closed_form:
        remedy = "at this scale layers may override the permutation; use a smaller one, or compare caches only"
        raise InputError("scale", spec.layer_scale, remedy)
    return make_cycle(spec)
