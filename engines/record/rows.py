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


class StepRows:
    """One row per request and batch."""

    def __init__(self) -> None:
        self._batches = array("q")  # id and size of each batch
        self._requests = array("q")
        self._output_tokens = array("q")  # after the batch
        self._draft_lengths = array("q")
        self._waits = array("d")
        self._settlements: list[Settlement | None] = []  # many rows share one

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, batch: Batch) -> None:
        """Add the members of a batch, after Scheduler.complete."""
        members = batch.members
        self._batches.extend((batch.id, len(members)))
        self._requests.fromlist([state.request.id for state in members])  # fromlist: extend is much slower
        self._output_tokens.fromlist([state.emitted for state in members])
        self._draft_lengths.fromlist(batch.draft_lengths)
        self._waits.fromlist(list(chain.from_iterable(batch.waits)))
        self._settlements += batch.settlements

    def table(self) -> pd.DataFrame:
        """Return the rows so far."""
        if not len(self):
            return pd.DataFrame([], columns=list(STEPS))
        batch_id, size = np.array(self._batches).reshape(-1, 2).T
        columns = dict(zip(_BOOKED, self._booked().T, strict=True))
        columns |= dict(zip(Wait._fields, np.array(self._waits).reshape(-1, 3).T, strict=True))
        columns |= {
            "batch_id": np.repeat(batch_id, size),
            "request": np.array(self._requests),
            "position": np.array(self._output_tokens) - columns["emitted"],
            "draft_length": np.array(self._draft_lengths),
        }
        return pd.DataFrame({name: columns[name] for name in STEPS})

    def _booked(self) -> np.ndarray:
        """Return what each row emitted, accepted, rejected and discarded."""
        objects = np.fromiter(map(id, self._settlements), np.int64, len(self))
        _, first, kinds = np.unique(objects, return_index=True, return_inverse=True)
        distinct = [self._settlements[row] for row in first.tolist()]
        booked = [[getattr(settled, name, 0) for name in _BOOKED] for settled in distinct]  # nothing for None
        return np.array(booked)[kinds]


class SpanRows:
    """One row per batch and segment."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Any, ...], int] = {}  # what rows have in common, by its number
        self._kind_columns: list[tuple[Any, ...]] = []
        self._whole = array("q")
        self._float = array("d")

    def add(self, batch: Batch, segments: Iterable[tuple[Any, ...]], completed_s: float) -> None:
        """Add the segments of a batch, given as SegmentTime, in order."""
        name, number, dispatched_s = batch.lane.name, batch.id, batch.dispatched_s
        for (segment, start_s, end_s, solo_s), (_, size, k, tokens, context) in zip(segments, cycle(batch.shapes)):
            key = (name, batch.worker, batch.step, segment, batch.hybrid, batch.back_to_back)
            kind = self._kinds.get(key)
            if kind is None:
                kind = self._kinds[key] = len(self._kinds)
                self._kind_columns.append(_kind_columns(batch, segment))
            self._whole.fromlist([number, kind, size, k, tokens])
            self._float.fromlist([context, dispatched_s, start_s, end_s, completed_s, solo_s])

    def table(self) -> pd.DataFrame:
        """Return the rows so far."""
        if not self._kinds:
            return pd.DataFrame([], columns=list(SPANS))
        batch_id, kind, *whole = np.array(self._whole).reshape(-1, 2 + len(_WHOLE)).T
        kinds = pd.DataFrame(self._kind_columns, columns=list(_KIND))
        columns: dict[str, Any] = {name: kinds[name].take(kind).reset_index(drop=True) for name in _KIND}
        columns |= dict(zip(_WHOLE, whole, strict=True))
        columns |= dict(zip(_FLOAT, np.array(self._float).reshape(-1, len(_FLOAT)).T, strict=True))
        columns["batch_id"] = batch_id
        return pd.DataFrame({name: columns[name] for name in SPANS})


def _kind_columns(batch: Batch, segment: Segment) -> tuple[Any, ...]:
    lane = batch.lane
    return (
        lane.name, batch.worker, lane.device, lane.stream, str(batch.step), str(segment), batch.hybrid,
        batch.back_to_back,
    )  # fmt: skip
