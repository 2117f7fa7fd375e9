"""The metrics of a run without its record: sums, and a few numbers per request for its quantiles."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from engines.policy.architecture import Segment, Step
from engines.policy.batch import Batch
from engines.policy.request import Request, Status
from engines.policy.request_state import RequestState
from engines.policy.segment_shape import SegmentShape
from engines.record.exact_sum import ExactSum
from engines.record.metrics import DEPTHS, goodput, per_second, request_summary, utilisation
from engines.record.run import Run, SegmentTime

_PREFILL: Final = Step.PREFILL
CHUNK = 1024  # segments that are added up at a time


class Totals:
    """Collect what a Recorder does, but keep no rows.

    Per request, it keeps six numbers, and two more for each of two moments: 80 bytes.

    running: the batches that have started and not completed, as Scheduler.running. error: that of the first request
    that was rejected, "" if none was.
    """

    def __init__(self, running: Mapping[int, Batch]) -> None:
        self.error = ""
        self._running = running
        self._requests = array("q")  # id, output tokens and whether it finished
        self._times_s = array("d")  # arrival, first token (nan if none) and finish
        self._moments_s = array("d")  # when a request had its first token or ended
        self._emitted_by = array("q")  # output tokens of all requests until then, that moment included
        self._emitted = self._drafted = self._accepted = 0
        self._verified = self._verifications = 0
        self._shapes: list[SegmentShape] = []  # of the segments that are not yet added up
        self._sizes = dict.fromkeys(Segment, 0)  # of all batches together, and how many there were
        self._batches = dict.fromkeys(Segment, 0)
        self._lanes: defaultdict[str, _Durations] = defaultdict(_Durations)
        self._devices: defaultdict[int, _Overlap] = defaultdict(_Overlap)
        self._table: pd.DataFrame | None = None

    def completed(self, batch: Batch, segments: Iterable[SegmentTime], completed_s: float) -> None:
        """Take note of a batch (after Scheduler.complete) and its segments in order."""
        emitted = [settled.emitted for settled in batch.settlements if settled is not None and settled.emitted]
        total = sum(emitted)
        self._emitted += total
        prefill = batch.step is _PREFILL
        if not prefill:
            self._verified += total
            self._verifications += len(emitted)
        if prefill or (self._moments_s and self._moments_s[-1] == completed_s):
            self._note(completed_s)
        lane, device = self._lanes[batch.lane.name].seconds, self._devices[batch.lane.device]
        for _, start_s, end_s, _ in segments:
            lane.append(end_s - start_s)
            device.starts_s.append(start_s)
            device.ends_s.append(end_s)
        self._shapes += batch.shapes
        if len(self._shapes) >= CHUNK:
            self._add_up(min((one.dispatched_s for one in self._running.values()), default=completed_s))

    def ended(self, state: RequestState) -> None:
        """Take note of a request that has ended."""
        assert state.finish_s is not None
        self._drafted += state.drafted
        self._accepted += state.accepted
        first_s = float("nan") if state.prefill_end_s is None else state.prefill_end_s
        times_s = [state.arrival_s, first_s, state.finish_s]
        self._keep(state.id, state.emitted, times_s, state.status is Status.FINISHED)
        self._note(state.finish_s)

    def rejected(self, request: Request, now: float, error: Exception) -> None:
        """Take note of a request that was rejected on submission."""
        self.error = self.error or str(error)
        self._keep(request.id, 0, [now, float("nan"), now], False)
        self._note(now)

    def summary(self, info: Mapping[str, Any], objectives: tuple[float, float] | None = None) -> dict[str, float]:
        """Return what engines.record.metrics.summary gives for the record of this run, to the last bit.

        info: that of the record; its workload and architecture are read. objectives: a TTFT and a TPOT, in seconds;
        adds the goodput.
        """
        self._add_up(float("inf"))
        run, nan = self.run(info), float("nan")
        duration_s = run.duration_s
        out = request_summary(run, self._emitted_between)
        out["acceptance_rate"] = self._accepted / self._drafted if self._drafted else nan
        out["acceptance_length"] = self._verified / self._verifications if self._verifications else nan
        for segment in sorted(segment for segment, batches in self._batches.items() if batches):
            out[f"batch_size.{segment}"] = self._sizes[segment] / self._batches[segment]
        for lane in sorted(self._lanes):
            out[f"lane_busy.{lane}"] = per_second(self._lanes[lane].sum.total, duration_s)
        if objectives is not None:
            out["goodput_requests_per_s"] = goodput(run, *objectives)
        return out | utilisation(run, {device: overlap.seconds for device, overlap in self._devices.items()})

    def run(self, info: Mapping[str, Any]) -> Run:
        """Return the run, once it has ended, with nothing but its `table`."""
        return Run(dict(info), self.table, pd.DataFrame(), pd.DataFrame())

    def _keep(self, request: int, output_tokens: int, times_s: list[float], finished: bool) -> None:
        self._requests.fromlist([request, output_tokens, finished])
        self._times_s.fromlist(times_s)

    def _note(self, now: float) -> None:
        """Take note of how many tokens were emitted until now."""
        if self._moments_s and self._moments_s[-1] == now:
            self._emitted_by[-1] = self._emitted
        else:
            self._moments_s.append(now)
            self._emitted_by.append(self._emitted)

    def _emitted_between(self, start_s: float, end_s: float) -> int:
        first, last = (self._emitted_by[bisect_right(self._moments_s, moment) - 1] for moment in (start_s, end_s))
        return last - first

    def _add_up(self, before_s: float) -> None:
        """Add up the segments so far. before_s: every segment that is still to come starts at this time or later."""
        for shape in self._shapes:
            self._sizes[shape.segment] += shape.batch_size
            self._batches[shape.segment] += 1
        self._shapes.clear()
        for lane in self._lanes.values():
            lane.add_up()
        for device in self._devices.values():
            device.add_up(before_s)

    @property
    def table(self) -> pd.DataFrame:
        """What request_summary and goodput read of the table of requests, in order of id, once the run has ended.

        The status of a request that did not finish is REJECTED, whatever it was.
        """
        if self._table is None:
            self._table = self._tabulated()
        return self._table

    def _tabulated(self) -> pd.DataFrame:
        request, output_tokens, finished = np.array(self._requests).reshape(-1, 3).T
        arrival_s, first_s, finish_s = np.array(self._times_s).reshape(-1, 3).T
        table = pd.DataFrame(
            {
                "request": request,
                "output_tokens": output_tokens,
                "status": np.where(finished, str(Status.FINISHED), str(Status.REJECTED)),
                "arrival_s": arrival_s,
                "first_token_s": first_s,
                "finish_s": finish_s,
            }
        )
        return table.sort_values("request", ignore_index=True)


class _Durations:
    """The sum of the seconds that are appended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.sum = ExactSum()

    def add_up(self) -> None:
        self.sum.add(self.seconds)
        self.seconds.clear()


class _Overlap:
    """For how long at least N segments ran on a device, for each N in DEPTHS."""

    def __init__(self) -> None:
        self.starts_s: list[float] = []
        self.ends_s: list[float] = []
        self._last_s, self._depth = 0.0, 0  # the last time added up, and how many segments ran from then on
        self._sums = [ExactSum() for _ in DEPTHS]

    @property
    def seconds(self) -> list[float]:
        return [held.total for held in self._sums]

    def add_up(self, before_s: float) -> None:
        """Add up all that is before this time."""
        starts, ends = np.array(self.starts_s), np.array(self.ends_s)
        begun, ended = starts < before_s, ends < before_s
        times = np.concatenate([starts[begun], ends[ended]])
        change = np.repeat([1, -1], [begun.sum(), ended.sum()])
        order = np.argsort(times, kind="stable")
        times = times[order]
        depth = self._depth + np.cumsum(change[order]) - change[order]  # before each time
        held = np.diff(times, prepend=self._last_s)
        for n, total in zip(DEPTHS, self._sums, strict=True):
            total.add(held[depth >= n])
        if len(times):
            self._last_s, self._depth = float(times[-1]), self._depth + int(change.sum())
        self.starts_s, self.ends_s = starts[~begun].tolist(), ends[~ended].tolist()
