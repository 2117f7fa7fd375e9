"""Rows of the tables `steps` and `spans`, kept in typed arrays while a run goes on.

A run has many more of these rows than requests. Arrays of numbers take a tenth of the memory of Python objects, and
the garbage collector does not visit them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import chain, cycle
from typing import Any

import numpy as np
import pandas as pd

from engines.policy.architecture import Segment
from engines.policy.batch import Batch, Wait
from engines.policy.request import Settlement
from engines.record.schema import SPANS, STEPS

_KIND = ("lane", "worker", "device", "stream", "step", "segment", "hybrid", "back_to_back")
_WHOLE = ("batch_size", "draft_length", "tokens")
_FLOAT = ("context_tokens", "dispatched_s", "start_s", "end_s", "completed_s", "solo_s")
_BOOKED = ("emitted", "accepted", "rejected", "discarded")


_PENDING = 10_000  # numbers that wait for their array in a list, to which adding is much faster


class StepRows:
    """One row per request and batch."""

    def __init__(self) -> None:
        self._batches = _Numbers("q")  # id and size of each batch
        self._requests = _Numbers("q")
        self._output_tokens = _Numbers("q")  # after the batch
        self._draft_lengths = _Numbers("q")
        self._waits = _Numbers("d")
        self._settlements: list[Settlement | None] = []  # many rows share one

    def add(self, batch: Batch) -> None:
        """Add the members of a batch, after Scheduler.complete."""
        members, waits = batch.members, self._waits
        self._batches.pending += (batch.id, len(members))
        self._requests.pending += [state.request.id for state in members]
        self._output_tokens.pending += [state.emitted for state in members]
        self._draft_lengths.pending += batch.draft_lengths
        waits.pending += chain.from_iterable(batch.waits)
        self._settlements += batch.settlements
        if len(waits.pending) > _PENDING:
            for numbers in (self._batches, self._requests, self._output_tokens, self._draft_lengths, waits):
                numbers.pack()

    def table(self) -> pd.DataFrame:
        """Return the rows so far."""
        if not self._settlements:
            return pd.DataFrame([], columns=list(STEPS))
        batch_id, size = self._batches.columns(2)
        columns = dict(zip(_BOOKED, self._booked().T, strict=True))
        columns |= dict(zip(Wait._fields, self._waits.columns(3), strict=True))
        columns |= {
            "batch_id": np.repeat(batch_id, size),
            "request": self._requests.columns(1)[0],
            "position": self._output_tokens.columns(1)[0] - columns["emitted"],
            "draft_length": self._draft_lengths.columns(1)[0],
        }
        return pd.DataFrame({name: columns[name] for name in STEPS})

    def _booked(self) -> np.ndarray:
        """Return what each row emitted, accepted, rejected and discarded."""
        objects = np.fromiter(map(id, self._settlements), np.int64, len(self._settlements))
        _, first, kinds = np.unique(objects, return_index=True, return_inverse=True)
        distinct = [self._settlements[row] for row in first.tolist()]
        booked = [[getattr(settled, name, 0) for name in _BOOKED] for settled in distinct]  # nothing for None
        return np.array(booked)[kinds]


class SpanRows:
    """One row per batch and segment."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Any, ...], int] = {}  # what rows have in common, by its number
        self._kind_columns: list[tuple[Any, ...]] = []
        self._whole = _Numbers("q")
        self._float = _Numbers("d")

    def add(self, batch: Batch, segments: Iterable[tuple[Any, ...]], completed_s: float) -> None:
        """Add the segments of a batch, given as SegmentTime, in order."""
        device, name = batch.lane.device, batch.lane.name  # in a fleet, replicas have lanes of the same names
        number, dispatched_s = batch.id, batch.dispatched_s
        for (segment, start_s, end_s, solo_s), (_, size, k, tokens, context) in zip(segments, cycle(batch.shapes)):
            key = (device, name, batch.worker, batch.step, segment, batch.hybrid, batch.back_to_back)
            kind = self._kinds.get(key)
            if kind is None:
                kind = self._kinds[key] = len(self._kinds)
                self._kind_columns.append(_kind_columns(batch, segment))
            self._whole.pending += (number, kind, size, k, tokens)
            self._float.pending += (context, dispatched_s, start_s, end_s, completed_s, solo_s)
        if len(self._float.pending) > _PENDING:
            self._whole.pack()
            self._float.pack()

    def table(self) -> pd.DataFrame:
        """Return the rows so far."""
        if not self._kinds:
            return pd.DataFrame([], columns=list(SPANS))
        batch_id, kind, *whole = self._whole.columns(2 + len(_WHOLE))
        kinds = pd.DataFrame(self._kind_columns, columns=list(_KIND))
        columns: dict[str, Any] = {name: kinds[name].take(kind).reset_index(drop=True) for name in _KIND}
        columns |= dict(zip(_WHOLE, whole, strict=True))
        columns |= dict(zip(_FLOAT, self._float.columns(len(_FLOAT)), strict=True))
        columns["batch_id"] = batch_id
        return pd.DataFrame({name: columns[name] for name in SPANS})


def _kind_columns(batch: Batch, segment: Segment) -> tuple[Any, ...]:
    lane = batch.lane
    return (
        lane.name, batch.worker, lane.device, lane.stream, str(batch.step), str(segment), batch.hybrid,
        batch.back_to_back,
    )  # fmt: skip


class _Numbers:
    """An array of numbers, of a type code of array.array; the latest are in the list `pending`."""

    __slots__ = ("_packed", "pending")

    def __init__(self, code: str) -> None:
        self._packed = array(code)
        self.pending: list[Any] = []

    def pack(self) -> None:
        self._packed.fromlist(self.pending)
        self.pending.clear()

    def columns(self, count: int) -> np.ndarray:
        """Return all numbers, as the rows of a table of `count` columns, column by column."""
        self.pack()
        return np.array(self._packed).reshape(-1, count).T
