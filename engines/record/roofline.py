"""Count the bytes that each segment must move and the operations that it must compute.

This counts a model's weights once per pass, the keys and values that attention reads and writes, and the
multiplications and additions of matrix products and attention. It leaves out activations, embedding rows and logits:
about a percent at real sizes. Bytes over the copy bandwidth, or operations over the matrix rate, is therefore a lower
bound on a segment's time, and bytes over its time is the bandwidth that it achieved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from engines.policy.architecture import Segment
from engines.policy.segment_shape import SegmentShape
from engines.record.run import Run

Number = int | float | np.ndarray | pd.Series


@dataclass(frozen=True)
class ModelCounts:
    """The size of a decoder.

    layer_parameters: number of weights that every token goes through (all but embeddings and output matrix).
    head_parameters: number of weights of the output matrix. layers, heads, kv_heads, head_dim: shape of attention.
    value_bytes: bytes per weight, key or value.
    """

    layer_parameters: int
    head_parameters: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one pass reads."""
        return (self.layer_parameters + self.head_parameters) * self.value_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.value_bytes


class PairCounts(NamedTuple):
    """The sizes of both models of a pair."""

    target: ModelCounts
    draft: ModelCounts


class WorkCounts(NamedTuple):
    """Bytes moved and operations computed by a segment: numbers, or arrays if the inputs were arrays.

    weight_bytes and matrix_operations belong to the matrix products, cache_bytes and attention_operations to
    attention.
    """

    weight_bytes: Number
    cache_bytes: Number
    matrix_operations: Number
    attention_operations: Number

    @property
    def bytes(self) -> Number:
        return self.weight_bytes + self.cache_bytes

    @property
    def operations(self) -> Number:
        return self.matrix_operations + self.attention_operations


@dataclass(frozen=True)
class Ceilings:
    """Rates that a device reached on a plain copy (bytes/s, read and written both counted) and a plain matrix product
    (operations/s)."""

    copy_bytes_per_s: float
    matrix_operations_per_s: float

    def floor_s(self, work: WorkCounts) -> Number:
        """Return the least time in seconds for some work.

        Matrix products and attention run one after the other. Each is bound by bytes or by operations.
        """
        matrices = self._bound(work.weight_bytes, work.matrix_operations)
        return matrices + self._bound(work.cache_bytes, work.attention_operations)

    def _bound(self, moved: Number, computed: Number) -> Number:
        return np.maximum(moved / self.copy_bytes_per_s, computed / self.matrix_operations_per_s)


def count_work(
    segment: Segment, pair: PairCounts, columns: Mapping[str, Any] | pd.Series | pd.DataFrame
) -> WorkCounts:
    """Count the work of a segment.

    columns: those of a SegmentShape, as numbers or arrays. Packed prompts count as equally long.
    """
    batch, k, tokens, context_tokens = (columns[name] for name in SegmentShape._fields[1:])
    if segment is Segment.DRAFT:  # k passes; the first feeds two tokens per request, so k + 1 are fed
        keys_read = k * context_tokens + k * (k - 1) / 2
        pairs = (k + 1) * context_tokens - 1 + k * (k - 1) / 2
        return _count(pair.draft, k, batch * (k + 1), batch * (k + 1), batch * keys_read, batch * pairs)
    if segment is Segment.VERIFY:  # one pass over the last known token and the drafts
        pairs = (k + 1) * context_tokens + k * (k + 1) / 2
        new = batch * (k + 1)
        return _count(pair.target, 1, new, new, batch * (context_tokens + k), batch * pairs)
    target = segment is Segment.PREFILL_TARGET
    pairs = tokens * (tokens / batch + 1) / 2
    return _count(pair.target if target else pair.draft, 1, tokens, batch if target else 1, tokens, pairs)


def _count(
    model: ModelCounts, passes: Number, tokens: Number, rows: Number, keys_read: Number, pairs: Number
) -> WorkCounts:
    """tokens: fed, and so written to the pool. rows: of logits. pairs: (query, key) pairs that attention scores."""
    return WorkCounts(
        weight_bytes=passes * model.weight_bytes,
        cache_bytes=(keys_read + tokens) * model.token_bytes,
        matrix_operations=2 * (model.layer_parameters * tokens + model.head_parameters * rows),
        attention_operations=4 * model.layers * model.heads * model.head_dim * pairs,  # scores, weighted values
    )


def count_spans(spans: pd.DataFrame, pair: PairCounts) -> pd.DataFrame:
    """Return the WorkCounts of each row of a run's spans, with the same index."""
    out = pd.DataFrame(0.0, index=spans.index, columns=list(WorkCounts._fields))
    for name, rows in spans.groupby("segment"):
        columns = rows[list(SegmentShape._fields[1:])].astype(float)
        work = count_work(Segment(str(name)), pair, columns)
        for field, values in zip(WorkCounts._fields, work, strict=True):
            out.loc[rows.index, field] = values
    return out


def achieved(run: Run, pair: PairCounts, ceilings: Ceilings | None = None) -> dict[str, float]:
    """Return the TB/s and TFLOP/s that a run achieved, over its duration and per segment over its time on the device.

    With ceilings, also return these rates as shares of the ceilings, and floor_share: the least time for the work
    over the time that it took. Overlapping segments share the device, so their rates are lower than alone.
    """
    counts = count_spans(run.spans, pair)
    held = run.spans["end_s"] - run.spans["start_s"]
    out = _rates("", WorkCounts(*(counts[field] for field in counts)), run.duration_s, ceilings)
    for name, rows in counts.groupby(run.spans["segment"]):
        work = WorkCounts(*(rows[field] for field in counts))
        out |= _rates(f"{name}.", work, float(held[rows.index].sum()), ceilings)
    return out


def _rates(prefix: str, work: WorkCounts, seconds: float, ceilings: Ceilings | None) -> dict[str, float]:
    moved, computed = (float(np.sum(values)) / seconds for values in (work.bytes, work.operations))
    out = {f"{prefix}tb_per_s": moved / 1e12, f"{prefix}tflop_per_s": computed / 1e12}
    if ceilings is not None:
        out[f"{prefix}bandwidth_share"] = moved / ceilings.copy_bytes_per_s
        out[f"{prefix}matrix_share"] = computed / ceilings.matrix_operations_per_s
        out[f"{prefix}floor_share"] = float(np.sum(ceilings.floor_s(work))) / seconds
    return out
