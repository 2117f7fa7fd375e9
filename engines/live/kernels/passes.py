"""One pass of a packed batch through a model, as operations on the residual stream from embedding to logits."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn.functional import embedding, linear

from engines.live.kernels.elementwise import add_rms_norm, rotate_and_store, silu_mul


class Product(NamedTuple):
    """One or more joined linear layers with the same input. weight: [outputs, inputs]. bias: [outputs] or None."""

    weight: Tensor
    bias: Tensor | None


class Pass(Protocol):
    """The residual stream of one pass, [tokens, width], and the matrix products that read it and add to it.

    The constructor takes ids ([tokens] int64), the embedding table ([vocabulary, width]), and the weights and epsilon
    of the first root-mean-square norm. The weights of each norm are given when the residual that it reads is made.
    """

    def queries(
        self, product: Product, head_norms: Tensor | None, rotations: Tensor, rows: Tensor,
        keys: Tensor, values: Tensor,
    ) -> Tensor:  # fmt: skip
        """Compute queries, keys and values of the normed residual, and store keys and values in the pool.

        See engines.live.kernels.elementwise.rotate_and_store. Returns the queries, [tokens, heads, head_dim].
        """

    def add(self, x: Tensor, product: Product, norm: Tensor) -> None:
        """Add the product of x, [tokens, inputs], to the residual. norm: [width], weights of the next norm."""

    def gate(self, product: Product) -> Tensor:
        """Return silu(gate) * up of the normed residual, [tokens, inner]. product: gate's outputs, then up's."""

    def project(self, product: Product) -> Tensor:
        """Return the product of the normed residual, [tokens, outputs]."""

    def keep(self, places: Tensor) -> None:
        """Keep only the tokens at these places, [kept] int64. Call `add` next."""


class WidePass:
    """A pass of any number of tokens, with library matrix products and one kernel per operation between them."""

    def __init__(self, ids: Tensor, table: Tensor, norm: Tensor, eps: float) -> None:
        self._residual, self._eps, self._norm = embedding(ids, table), eps, norm
        self._added: Tensor | None = None  # output of the last product, added by the next norm

    def queries(
        self, product: Product, head_norms: Tensor | None, rotations: Tensor, rows: Tensor,
        keys: Tensor, values: Tensor,
    ) -> Tensor:  # fmt: skip
        return rotate_and_store(self.project(product), rotations, head_norms, self._eps, rows, keys, values)

    def add(self, x: Tensor, product: Product, norm: Tensor) -> None:
        if self._added is not None:
            self._residual += self._added
        self._added, self._norm = linear(x, *product), norm

    def gate(self, product: Product) -> Tensor:
        return silu_mul(self.project(product))

    def project(self, product: Product) -> Tensor:
        normed = add_rms_norm(self._added, self._residual, self._norm, self._eps)
        self._added = None
        return linear(normed, *product)

    def keep(self, places: Tensor) -> None:
        self._residual = self._residual[places]
