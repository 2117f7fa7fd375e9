"""One pass of a packed batch through a model: what becomes of the residual stream between embedding and logits."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn.functional import embedding, linear

from engines.live.kernels.elementwise import add_rms_norm, rotate_and_store, silu_mul


class Product(NamedTuple):
    """A linear layer, or several that read the same input. weight: [outputs, inputs]; bias: [outputs] or None."""

    weight: Tensor
    bias: Tensor | None


class Pass(Protocol):
    """The residual stream of one pass, [tokens, width], and the products that read it and add to it.

    Made of ids ([tokens] int64), the embedding's table ([vocabulary, width]), and weights and epsilon of the first
    root-mean-square norm. A norm's weights are known when the residual that it will read is made.
    """

    def queries(
        self, product: Product, head_norms: Tensor | None, rotations: Tensor, rows: Tensor,
        keys: Tensor, values: Tensor,
    ) -> Tensor:  # fmt: skip
        """Queries, keys and values of the normed residual; see engines.live.kernels.elementwise.rotate_and_store.
        Returns the queries, [tokens, heads, head_dim]."""

    def add(self, x: Tensor, product: Product, norm: Tensor) -> None:
        """Add the product of x, [tokens, inputs]. norm: [width], the weights of the norm that comes next."""

    def gate(self, product: Product) -> Tensor:
        """silu(gate) * up of the normed residual. product: gate's outputs, then up's. Returns [tokens, inner]."""

    def project(self, product: Product) -> Tensor:
        """The product of the normed residual, [tokens, outputs]."""

    def keep(self, places: Tensor) -> None:
        """Go on with the tokens at these places alone, [kept] int64; `add` comes next."""


class WidePass:
    """A pass of any number of tokens: matrix products of the library, with a kernel for each thing between them."""

    def __init__(self, ids: Tensor, table: Tensor, norm: Tensor, eps: float) -> None:
        self._residual, self._eps, self._norm = embedding(ids, table), eps, norm
        self._added: Tensor | None = None  # by the last product; the next norm takes it along

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
